"""The scheduler: a client of it, a worker for it, and the worker's life from start to stop."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any

from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.grpc_options import GrpcWorkerResiliencyOptions
from durabletask.worker import ConcurrencyOptions

from .calls import CALL_SECONDS, PatientCalls
from .endpoint import connection
from .payloads import ModelConverter
from .program import setting

AGENT_CALLS = 256  # that a worker makes in parallel
STOP_SECONDS = 10.0  # how long a stopping worker waits for its work; the scheduler redelivers the rest

# One PatientCalls: what a client learns about the scheduler holds for a worker in the same process.
_COMMON: dict[str, Any] = {"interceptors": [PatientCalls()], "data_converter": ModelConverter()}


def scheduler_client() -> DurableTaskSchedulerClient:
    """A client of the scheduler. Raises grpc.RpcError immediately if none answers at ENDPOINT, or if it refuses us."""
    client = DurableTaskSchedulerClient(**connection(), **_COMMON)
    client.get_orchestration_state("is-anybody-there", fetch_payloads=False)
    return client


def scheduler_worker() -> DurableTaskSchedulerWorker:
    """A worker to register agents, orchestrations and activities with, and then to `serve`."""
    from .agent_runtime import read_dates_quickly  # here, since a client would import all of the agent framework

    read_dates_quickly()
    common = connection()
    local = not common["secure_channel"]
    worker = DurableTaskSchedulerWorker(
        **common,
        **_COMMON,
        resiliency_options=GrpcWorkerResiliencyOptions(
            reconnect_backoff_cap_seconds=1.0 if local else 30.0,
            silent_disconnect_timeout_seconds=45.0 if local else 120.0,  # the local scheduler pings more often
            channel_recreate_failure_threshold=1,  # a connection that went silent does not recover
            hello_timeout_seconds=CALL_SECONDS,
        ),
        # An agent call holds a thread until its model answers; the SDK's default is processors + 4 threads. Half of
        # them are left for other work, on which an agent's tool may wait.
        concurrency_options=ConcurrencyOptions(
            maximum_concurrent_entity_work_items=AGENT_CALLS, maximum_thread_pool_workers=2 * AGENT_CALLS
        ),
    )
    worker.use_work_item_filters()  # take only what is registered here, not the work of another sample
    return worker


@contextmanager
def running(worker: DurableTaskSchedulerWorker) -> Iterator[None]:
    """Run the worker during the body of the `with`; at its end, wait a bounded time for unfinished work."""
    scheduler_client().close()  # fails here, in one line; the worker alone would try indefinitely
    worker.start()
    try:
        yield
    finally:
        logging.getLogger("durabletask").setLevel(logging.CRITICAL)  # it warns of the stream that it ends itself
        stopping = threading.Thread(target=worker.stop, daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)


def serve(worker: DurableTaskSchedulerWorker) -> None:
    """Run the worker until SIGINT (Ctrl-C) or SIGTERM."""
    from .chat_client import model_in_use  # here, since a client needs no model

    stopped: SimpleQueue[int] = SimpleQueue()  # unlike an Event, it may be used in a signal handler
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.put(number))
    print(f"Model: {model_in_use()}", flush=True)
    with running(worker):
        hub = setting("TASKHUB", "default")
        print(f"Worker ready: task hub {hub}, process {os.getpid()}. Ctrl-C stops it.", flush=True)
        while True:
            with suppress(Empty):  # with a timeout, since on Windows an endless wait does not see Ctrl-C
                stopped.get(timeout=1.0)
                return
