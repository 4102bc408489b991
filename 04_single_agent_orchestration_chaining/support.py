"""Plumbing: settings, scheduler, model, asking an agent, starting and stopping. The lesson is in the files beside it.

The same file in every sample, so that each folder can be copied out alone.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from agent_framework import AgentResponse, AgentSession, ChatContext, ChatMiddleware, ChatResponse, Message
from agent_framework.exceptions import SettingNotFoundError
from agent_framework_durabletask import (
    AgentSessionId,
    DurableAgentExecutor,
    DurableAgentSession,
    DurableAgentState,
    DurableAIAgent,
    DurableAIAgentClient,
    DurableStateFields,
    RunRequest,
)
from azure.core.exceptions import ClientAuthenticationError
from dotenv import find_dotenv, load_dotenv
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import TaskHubGrpcClient
from durabletask.entities import EntityInstanceId
from durabletask.grpc_options import GrpcChannelOptions, GrpcWorkerResiliencyOptions
from durabletask.worker import ConcurrencyOptions

if TYPE_CHECKING:
    from agent_framework.openai import OpenAIChatCompletionClient

CONNECT_SECONDS = 5.0  # to reach the scheduler before saying that it is not there
CALL_SECONDS = 10.0  # for one attempt at a call; a scheduler that is silent for longer counts as unreachable
OUTAGE_SECONDS = 30.0  # how long a call waits for a scheduler that was there and is unreachable now
LOOK_SECONDS = 0.004  # between the first two looks for an answer; each other that waits adds as much to all pauses
STOP_SECONDS = 10.0  # to end in; another worker takes up at once what this one has in hand

log = logging.getLogger("sample")


class UsageError(Exception):
    """A setting or an argument is wrong; the message says which, and what mends it. Exit code 2."""


class AgentError(Exception):
    """An agent or orchestration failed, or did not answer in time; the message says why. Exit code 1."""


def run(main: Callable[[], None]) -> NoReturn:
    """Run a program: read `.env`, and turn what can go wrong into one line on stderr and an exit code."""
    load_dotenv(find_dotenv())
    code = 2
    try:
        _configure_logging()
        main()
        code = 0
    except (UsageError, SettingNotFoundError) as error:
        print(error, file=sys.stderr)
    except AgentError as error:
        print(error, file=sys.stderr)
        code = 1
    except grpc.RpcError as error:
        print(_scheduler_problem(error), file=sys.stderr)
    except ClientAuthenticationError as error:
        print(f"No Azure identity: run 'az login', or set a key. {error.message.splitlines()[0]}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _configure_logging() -> None:
    level = setting("LOG_LEVEL").upper()
    try:
        logging.basicConfig(level=level or "WARNING", format="%(levelname)s %(name)s: %(message)s")
    except ValueError:
        raise UsageError(f"LOG_LEVEL={level} is no level: use DEBUG, INFO, WARNING or ERROR.") from None
    if not level:  # the SDKs log a traceback where this file says in one line what went wrong
        logging.getLogger("agent_framework").setLevel(logging.CRITICAL)
        logging.getLogger("azure").setLevel(logging.CRITICAL)
        logging.getLogger("durabletask").addFilter(_shortened)


def _shortened(record: logging.LogRecord) -> bool:
    """One line each; none for a lost connection, of which `PatientCalls` says the beginning and the end."""
    message = record.getMessage()
    record.msg, record.args, record.exc_info = textwrap.shorten(message, 300), None, None
    return record.levelno != logging.WARNING or not re.search(
        "UNAVAILABLE|DEADLINE_EXCEEDED|Connection failed, retrying|Timed out waiting for work|Stream reader", message
    )


def setting(name: str, default: str = "") -> str:
    """An environment variable; one that is set to nothing counts as not set."""
    return os.environ.get(name, "").strip() or default


# Scheduler -------------------------------------------------------------------------------------------------------


def _scheduler() -> dict[str, Any]:
    """Where the scheduler is, and who we are to it: what its client and its worker take alike."""
    endpoint = _endpoint()
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"ENDPOINT={endpoint} must start with http:// (emulator, local) or https:// (Azure).")
    secure = endpoint.startswith("https://")
    # gRPC shares a connection between the channels of a process. Without this, a worker that leaves a silent
    # connection for a new channel would get the same connection again.
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if not secure:  # by default, the pauses between attempts to connect grow to two minutes
        options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
    return {
        "host_address": endpoint.rstrip("/"),
        "taskhub": setting("TASKHUB", "default"),
        "secure_channel": secure,
        "token_credential": _azure_credential() if secure else None,
        "logger": logging.getLogger("durabletask"),  # without it, the SDK attaches a log handler of its own
        "channel_options": GrpcChannelOptions(raw_options=options),
        "interceptors": [_calls],
    }


def _azure_credential() -> Any:
    from azure.identity import DefaultAzureCredential  # a fifth of a second, and not needed locally

    return DefaultAzureCredential()


def scheduler_client() -> DurableTaskSchedulerClient:
    """A client of the scheduler, after a look whether it is there and lets us in.

    Raises:
        grpc.RpcError: nothing that speaks gRPC listens at ENDPOINT, or it refuses us, or is not a scheduler.
    """
    client = DurableTaskSchedulerClient(**_scheduler())
    client.get_orchestration_state("is-anybody-there", fetch_payloads=False)
    return client


@contextmanager
def waiting_at_most(seconds: float) -> Iterator[None]:
    """In its body, calls wait this long for an unreachable scheduler, if that is less than OUTAGE_SECONDS.

    For a caller that has a deadline of its own. Two seconds are left to a call even when there is no time left: a
    slow answer is not an outage.
    """
    token = _patience.set(min(OUTAGE_SECONDS, max(2.0, seconds)))
    try:
        yield
    finally:
        _patience.reset(token)


_patience = ContextVar("_patience", default=OUTAGE_SECONDS)


class PatientCalls(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Gives each call to the scheduler a deadline, and repeats it while the scheduler is unreachable.

    The very first call fails immediately instead: a scheduler that this process never reached is not waited for. The
    SDK's two waiting calls keep the deadline that their caller sets. `Hello`, with which a worker connects, is made
    once: the worker repeats it by itself.

    When the scheduler cannot be reached any more, and when it is back, stderr gets one line.

    A call whose reply was lost may have taken effect, so a repeat must not take effect again. All attempts at a call
    that changes something carry the same x-request-id, by which the local scheduler recognises a repeat. DTS ignores
    it. There, starting an orchestration a second time is refused, which `_started` turns into the answer that was
    lost; a signal to an entity and a worker's result carry ids of their own; an event may arrive twice, so one that
    must count once needs an id in its data, as the decisions in sample 07 have.
    """

    _READS = ("Hello", "Get", "WaitFor", "Query", "List")
    _UNREACHABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    def __init__(self) -> None:
        self._heard = 0.0  # when the scheduler answered last; 0: never
        self._lost = 0.0  # when it was found to be unreachable; 0: it is not
        self._lock = threading.Lock()

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        details, method = client_call_details, client_call_details.method.rpartition("/")[2]
        if not method.startswith(self._READS):
            request_id = ("x-request-id", uuid.uuid4().hex)
            details = details._replace(metadata=[*(details.metadata or ()), request_id])
        waits, patient, repeated = method.startswith("WaitFor"), self._heard > 0 and method != "Hello", False
        seconds = details.timeout
        if seconds is None:
            seconds = _patience.get() if patient else CONNECT_SECONDS
        began = time.monotonic()
        ends = began + seconds
        while True:
            left = max(0.0, ends - began)
            call = continuation(details._replace(timeout=left if waits else min(left, CALL_SECONDS)), request)
            code = call.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED and waits:
                return call
            if code not in self._UNREACHABLE:
                self._answered()
                refused = repeated and code is grpc.StatusCode.ALREADY_EXISTS and method == "StartInstance"
                return _started(request) if refused else call
            self._unanswered(began)
            began = time.monotonic() + 0.2
            if not patient or (began > ends and not waits):  # a wait ends with its deadline, as its caller expects
                return call
            time.sleep(0.2)
            repeated, details = True, details._replace(wait_for_ready=True)  # waits for a connection

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        def ended(call: Any) -> None:
            if call.code() is grpc.StatusCode.UNAVAILABLE:
                self._unanswered(time.monotonic())

        call = continuation(client_call_details, request)
        call.add_done_callback(ended)
        return call

    def _answered(self) -> None:
        with self._lock:
            self._heard = time.monotonic()
            if self._lost:
                _say(f"The scheduler at {_endpoint()} is back after {self._heard - self._lost:.0f} s.")
                self._lost = 0.0

    def _unanswered(self, began: float) -> None:
        with self._lock:
            if 0 < self._heard < began and not self._lost:  # else it answers other calls
                self._lost = time.monotonic()
                _say(f"The scheduler at {_endpoint()} is unreachable. Waiting for it to come back.")


_calls = PatientCalls()  # one for client and worker alike: what one of them learns about the scheduler holds for both


def _started(request: Any) -> Any:
    """What the SDK looks at in the answer to the start of an orchestration."""
    answer = SimpleNamespace(instanceId=request.instanceId)
    return SimpleNamespace(result=lambda: answer, exception=lambda: None, code=lambda: grpc.StatusCode.OK)


def _say(line: str) -> None:
    """Print a line on stderr. On a terminal, the cursor may be in the middle of an answer or a progress line."""
    print(f"\n{line}" if sys.stderr.isatty() else line, flush=True, file=sys.stderr)


def _endpoint() -> str:
    return setting("ENDPOINT", "http://localhost:8080")


def _scheduler_problem(error: grpc.RpcError) -> str:
    """What a failed call to the scheduler means for the person who sees it."""
    code, details = (error.code(), error.details()) if isinstance(error, grpc.Call) else (None, str(error))
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return (
            f"The scheduler at {_endpoint()} does not answer. Set ENDPOINT, or start one: "
            "'python3 run.py up' or 'docker compose up -d' in the collection's folder."
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return (
            f"The scheduler refuses this identity: {details}. Run 'az login', and give it the role "
            f"'Durable Task Data Contributor' on task hub '{setting('TASKHUB', 'default')}'."
        )
    return f"The scheduler refuses the call ({code.name if code else 'no status'}): {details}"


def scheduler_worker() -> DurableTaskSchedulerWorker:
    """A worker to register agents, orchestrations and activities with, and then to hand to `serve`."""
    scheduler = _scheduler()
    local = not scheduler["secure_channel"]
    worker = DurableTaskSchedulerWorker(
        **scheduler,
        resiliency_options=GrpcWorkerResiliencyOptions(
            reconnect_backoff_cap_seconds=1.0 if local else 30.0,
            silent_disconnect_timeout_seconds=45.0 if local else 120.0,  # the scheduler pings more often than that
            channel_recreate_failure_threshold=1,  # a connection that went silent does not recover: open a new one
            hello_timeout_seconds=CALL_SECONDS,
        ),
        # An agent call holds a thread as long as its model takes to answer, and by default there are processors + 4
        # of them: six calls at a time on two cores. Threads that wait cost next to nothing.
        concurrency_options=ConcurrencyOptions(maximum_thread_pool_workers=256),
    )
    # Take only work that is registered here. Without this, a forgotten worker of another sample would be sent this
    # one's orchestrations, and fail them as unknown.
    worker.use_work_item_filters()
    return worker


@contextmanager
def running(worker: DurableTaskSchedulerWorker) -> Iterator[None]:
    """Run the worker beside the body of the `with`; at its end, wait a bounded time for what is in hand."""
    scheduler_client().close()  # says now, in one line, what the worker would log for ever
    gc.freeze()  # what is loaded by now stays: the garbage collector need not look through it again and again
    worker.start()
    try:
        yield
    finally:
        logging.getLogger("durabletask").setLevel(logging.CRITICAL)  # it warns of the stream that is ended on purpose
        stopping = threading.Thread(target=worker.stop, daemon=True)
        stopping.start()
        stopping.join(STOP_SECONDS)
        if stopping.is_alive():  # its threads would hold the process; the scheduler gives their work to another worker
            sys.stdout.flush()
            os._exit(0)


def serve(worker: DurableTaskSchedulerWorker) -> None:
    """Run the worker until SIGINT (Ctrl-C) or SIGTERM."""
    stopped: SimpleQueue[int] = SimpleQueue()  # takes what a signal handler puts in at any moment; an Event may not
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.put(number))
    print(f"Model: {model_in_use()}", flush=True)
    with running(worker):
        print(
            f"Worker ready: task hub {setting('TASKHUB', 'default')}, process {os.getpid()}. Ctrl-C stops it.",
            flush=True,
        )
        while True:
            with suppress(Empty):  # in slices: on Windows an endless wait would not hear Ctrl-C
                stopped.get(timeout=1.0)
                return


# Model -----------------------------------------------------------------------------------------------------------


def chat_client(stream: bool = False) -> OpenAIChatCompletionClient:
    """The model that the environment names: Azure OpenAI, else any server that speaks OpenAI's protocol.

    Args:
        stream: have it answer token by token, for a callback that passes them on; otherwise an answer comes whole,
            which takes less than half of the processor's time.

    Raises:
        UsageError: the environment names none, or not all of it.
    """
    from openai import DefaultAioHttpClient  # this and the next line: a second, which a client need not spend

    client = _chat_client([ModelErrors(stream)])
    # With hundreds of calls at the same time, the default HTTP client takes three times as long for each.
    client.client = client.client.with_options(http_client=DefaultAioHttpClient())
    return client


def _chat_client(middleware: list[ChatMiddleware]) -> OpenAIChatCompletionClient:
    from agent_framework.openai import OpenAIChatCompletionClient

    if endpoint := setting("AZURE_OPENAI_ENDPOINT"):
        if not (deployment := setting("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME")):
            raise UsageError("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME is not set: which deployment of AZURE_OPENAI_ENDPOINT?")
        key = setting("AZURE_OPENAI_API_KEY")
        return OpenAIChatCompletionClient(
            deployment,
            azure_endpoint=endpoint,
            api_key=key or None,
            credential=None if key else _azure_credential(),
            middleware=middleware,
        )
    if key := setting("OPENAI_API_KEY"):
        if not (model := setting("OPENAI_MODEL")):
            raise UsageError("OPENAI_MODEL is not set: which model is OPENAI_API_KEY to use?")
        url = setting("OPENAI_BASE_URL") or None
        return OpenAIChatCompletionClient(model, api_key=key, base_url=url, middleware=middleware)
    raise UsageError(
        "No model is set: set AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_CHAT_DEPLOYMENT_NAME, or OPENAI_API_KEY and "
        "OPENAI_MODEL. 'python3 run.py up' in the collection's folder starts one that needs no account."
    )


def model_in_use() -> str:
    """The model that `chat_client` talks to, for a person to read."""
    if endpoint := setting("AZURE_OPENAI_ENDPOINT"):
        return f"{setting('AZURE_OPENAI_CHAT_DEPLOYMENT_NAME')} at {endpoint}"
    return f"{setting('OPENAI_MODEL')} at {setting('OPENAI_BASE_URL', 'OpenAI')}"


class ModelRejected(Exception):
    """The model will not take this request, however often it is asked: key, deployment, parameter or content."""


class ModelFailed(Exception):
    """The model did not answer this time: too busy, broken, out of reach, or cut off half way. Worth a retry."""


class ModelErrors(ChatMiddleware):
    """Sorts what goes wrong with a model into the two kinds above, with the model's own words.

    The agent runtime stores such an error as the answer; its `error_code` is the name of the exception.
    """

    def __init__(self, stream: bool) -> None:
        self._stream = stream

    async def process(self, context: ChatContext, call_next: Callable[[], Awaitable[None]]) -> None:
        if context.stream and not self._stream:
            # The agent runtime always asks for a stream first; at a TypeError that says so, it asks for the whole.
            raise TypeError("This model does not stream: see chat_client(stream=True).")
        context.stream_result_hooks.append(_require_whole_answer)
        try:
            await call_next()
        except Exception as error:
            problem = _model_problem(error)
            log.warning("%s", problem)
            raise problem from error
        if isinstance(context.result, ChatResponse):
            _require_whole_answer(context.result)


def _require_whole_answer(response: ChatResponse) -> None:
    # A stream that ends early looks like an answer to the SDK. Raised here, the runtime asks again, for the whole.
    if response.finish_reason is None:
        raise ModelFailed("The model's answer was cut off half way.")
    if response.finish_reason == "content_filter":
        raise ModelRejected("The model's content filter withheld the answer.")


def _model_problem(error: Exception) -> Exception:
    cause = error.__cause__ or error
    if isinstance(cause, ClientAuthenticationError):
        why = cause.message.partition("\n")[0]
        return ModelRejected(f"No Azure identity for the model: run 'az login', or set AZURE_OPENAI_API_KEY. {why}")
    status, body = getattr(cause, "status_code", None), getattr(cause, "body", None)
    words = str(body.get("message") or cause) if isinstance(body, dict) else str(cause)
    if status is None and cause.__cause__:  # of the HTTP library, which knows what became of the connection
        words = str(cause.__cause__) or words
    if status in (400, 401, 403, 404, 422):
        return ModelRejected(f"The model rejects the request ({status}): {words}")
    return ModelFailed(f"The model failed ({status or 'no answer'}): {words} [{model_in_use()}]")


# Asking an agent from a client -----------------------------------------------------------------------------------


def agent_client(agent_names: Collection[str], timeout: float = 120.0) -> AgentClient:
    """The package's client of durable agents, quick to see an answer, and plain about why there is none.

    Args:
        agent_names: the agents that the sample's worker hosts; `get_agent` refuses any other at once.
        timeout: seconds to wait for an answer.
    """
    return AgentClient(scheduler_client(), agent_names, timeout)


class AgentClient(DurableAIAgentClient):
    """DurableAIAgentClient with the executor below. In its stead, the plain class works with the same client.py."""

    def __init__(self, client: TaskHubGrpcClient, agent_names: Collection[str], timeout: float) -> None:
        super().__init__(client)
        self._names = agent_names
        self._asking = _AskingExecutor(client, timeout)

    def get_agent(self, agent_name: str) -> DurableAIAgent[AgentResponse]:
        """The agent of that name, to `run` with a message. Raises UsageError if this sample has no such agent."""
        if agent_name not in self._names:
            raise UsageError(f"There is no agent '{agent_name}' here; there are: {', '.join(self._names)}.")
        return DurableAIAgent(self._asking, agent_name)

    def stored_conversation(self, session: DurableAgentSession) -> DurableAgentState:
        """All that was said in a conversation so far; empty if it has not begun."""
        assert session.durable_session_id is not None
        return self._asking.stored_conversation(session.durable_session_id)


class _AskingExecutor(DurableAgentExecutor[AgentResponse]):
    """How `agent.run(…)` in a client asks: signal the agent's entity, look for the answer until it is there.

    `run` raises AgentError where the package would hand back an answer with an empty text: when the agent failed, and
    when it did not answer in time. With `options={"wait_for_response": False}` it returns at once, and the
    `response_id` of what it returns is the correlation id by which the answer can be found in the conversation.
    """

    def __init__(self, client: TaskHubGrpcClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._waiting: set[str] = set()  # the correlation ids

    def run_durable_agent(
        self, agent_name: str, run_request: RunRequest, session: AgentSession | None = None
    ) -> AgentResponse:
        session_id = session.durable_session_id if isinstance(session, DurableAgentSession) else None
        session_id = session_id or AgentSessionId.with_random_key(agent_name)
        self._client.signal_entity(_entity_id(session_id), "run", run_request.to_dict())
        if run_request.wait_for_response:
            return self._wait(session_id, run_request.correlation_id)
        return AgentResponse(messages=[Message("system", ["accepted"])], response_id=run_request.correlation_id)

    def _wait(self, session_id: AgentSessionId, correlation_id: str) -> AgentResponse:
        """Look often at first, for a quick model, and then ever less; less, too, the more of this process wait."""
        self._waiting.add(correlation_id)
        try:
            return self._look_until_there(session_id, correlation_id)
        finally:
            self._waiting.discard(correlation_id)

    def _look_until_there(self, session_id: AgentSessionId, correlation_id: str) -> AgentResponse:
        deadline = time.monotonic() + self._timeout
        pause, seen = LOOK_SECONDS, ""
        while (left := deadline - time.monotonic()) > 0:
            with waiting_at_most(left):
                state = self._state(session_id)
            if state != seen:
                seen = state
                if answer := _find_answer(state, correlation_id):
                    return require_answer(answer)
            shared = LOOK_SECONDS * (len(self._waiting) - 1)
            time.sleep(max(0.0, min(max(pause, shared), deadline - time.monotonic())))
            pause = min(pause * 1.15, 0.25)
        raise AgentError(
            f"No answer from {session_id.name} within {self._timeout:g} s. Is its worker running (python worker.py)? "
            f"The question is kept, and answered when one is: see conversation {session_id.key}."
        )

    def stored_conversation(self, session_id: AgentSessionId) -> DurableAgentState:
        """The conversation as the scheduler stores it."""
        state = self._state(session_id)
        return DurableAgentState.from_json(state) if state else DurableAgentState()

    def _state(self, session_id: AgentSessionId) -> str:
        entity = self._client.get_entity(_entity_id(session_id), include_state=True)
        return (entity.get_state() if entity else None) or ""


def _entity_id(session_id: AgentSessionId) -> EntityInstanceId:
    return EntityInstanceId(session_id.entity_name, session_id.key)


def _find_answer(state: str, correlation_id: str) -> AgentResponse | None:
    """The answer to one request in a stored conversation, of which the package would read every entry."""
    stored = json.loads(state)
    data = stored[DurableStateFields.DATA]
    turns = data[DurableStateFields.CONVERSATION_HISTORY]
    data[DurableStateFields.CONVERSATION_HISTORY] = [
        turn for turn in turns if turn.get(DurableStateFields.CORRELATION_ID) == correlation_id
    ]
    return DurableAgentState.from_dict(stored).try_get_agent_response(correlation_id)


def key_of(session: DurableAgentSession) -> str:
    """What names the conversation, together with the agent's name."""
    assert session.durable_session_id is not None
    return session.durable_session_id.key


def require_answer(response: AgentResponse) -> AgentResponse:
    """The response itself, if it is one. Raises AgentError with the agent's message if it stands for a failure."""
    for message in response.messages:
        for content in message.contents:
            if content.type == "error":
                raise AgentError(content.message or "The agent failed without a message.")
    return response
