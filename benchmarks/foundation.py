"""What the foundation costs on this machine: one turn, 200 orchestrations at once, and an idle stack.

    .venv/bin/python benchmarks/foundation.py

Starts the local services and a worker of sample 01 without delays, measures from a client's process, and prints a
table. `run.py` must have made .venv before.
"""

import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "01_single_agent"
sys.path.insert(0, str(SAMPLE))

from agent_framework_durabletask import DurableAIAgentOrchestrationContext, DurableAIAgentWorker  # noqa: E402
from support import agent_client, scheduler_client, scheduler_worker  # noqa: E402
from worker import create_joker  # noqa: E402


def start(*command: str, cwd: Path = ROOT, ready: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process; returns it and the line that contains `ready`."""
    process = subprocess.Popen([sys.executable, *command], cwd=cwd, stdout=subprocess.PIPE, text=True)
    output: IO[str] = process.stdout  # pyright: ignore[reportAssignmentType]
    for line in output:
        if ready in line:
            return process, line.split()[-1]
    raise SystemExit(f"{command} did not become ready")


def two_calls(context: Any, number: int) -> Any:
    """A chain of two calls of the agent."""
    agent = DurableAIAgentOrchestrationContext(context).get_agent("Joker")
    session = agent.create_session()
    yield agent.run(f"Hello {number}", session=session)
    yield agent.run("Hello again", session=session)


def one_turn(runs: int = 200) -> list[float]:
    """Milliseconds from the client's question to its answer, each in a new conversation."""
    joker = agent_client(["Joker"]).get_agent("Joker")
    joker.run("warm up")
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        joker.run("Hello")
        times.append((time.perf_counter() - began) * 1000)
    return times


def orchestrations_at_once(count: int = 200) -> float:
    """Seconds until `count` chains of two calls, all started at once, are done."""
    client = scheduler_client()
    began = time.perf_counter()
    instances = [client.schedule_new_orchestration(two_calls, input=number) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        states = list(pool.map(lambda i: client.wait_for_orchestration_completion(i, timeout=120), instances))
    elapsed = time.perf_counter() - began
    assert all(state and state.runtime_status.name == "COMPLETED" for state in states)
    return elapsed


def cpu_seconds(pids: list[int]) -> float:
    """What the processes have taken of the processor so far (Linux)."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def memory_megabytes(pids: list[int]) -> float:
    """Resident memory of the processes (Linux)."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    """Measure, and print."""
    scheduler, address = start("-m", "local_services.scheduler", "--port", "0", ready="ready")
    delays = ["--first-token-delay", "0", "--token-delay", "0"]
    model, model_address = start("-m", "local_services.model", "--port", "0", *delays, ready="ready")
    slow, slow_address = start(
        "-m", "local_services.model", "--port", "0", "--first-token-delay", "0.05", "--token-delay", "0", ready="ready"
    )
    os.environ.update(
        ENDPOINT=address,
        AZURE_OPENAI_ENDPOINT=model_address,
        AZURE_OPENAI_CHAT_DEPLOYMENT_NAME="offline-model",
        AZURE_OPENAI_API_KEY="local",
        TASKHUB="turns",
    )
    worker, _ = start("worker.py", cwd=SAMPLE, ready="Worker ready")
    processes = [scheduler, model, worker]
    try:
        turns = one_turn()
        print(f"one turn, model of 0 ms          median {statistics.median(turns):6.1f} ms of {len(turns)} runs")

        pids = [process.pid for process in processes]
        time.sleep(2)
        before = cpu_seconds(pids)
        time.sleep(10)
        print(f"idle: scheduler, model, worker   {(cpu_seconds(pids) - before) * 10:6.2f} % of one core")
        print(f"                                 {memory_megabytes(pids):6.0f} MB")

        os.environ.update(TASKHUB="chains", AZURE_OPENAI_ENDPOINT=slow_address)
        program = f"import sys; sys.path[:0] = {[str(SAMPLE), str(Path(__file__).parent)]!r}; import foundation; "
        chains, _ = start("-c", program + "foundation.serve_chains()", ready="Worker ready")
        processes.append(chains)
        orchestrations_at_once(20)
        seconds = [orchestrations_at_once() for _ in range(3)]
        print(f"200 chains of two 50 ms calls    median {statistics.median(seconds):6.2f} s of {len(seconds)} runs")
    finally:
        for process in [*processes, slow]:
            process.terminate()


def serve_chains() -> None:
    """Run a worker that knows `two_calls`."""
    from support import serve

    worker = scheduler_worker()
    worker.add_orchestrator(two_calls)
    DurableAIAgentWorker(worker).add_agent(create_joker())
    serve(worker)


if __name__ == "__main__":
    main()
