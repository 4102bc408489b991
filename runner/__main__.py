"""The commands of run.py: the list, one sample, all samples, the local services only, removing their state."""

import argparse
import ast
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from local_services.service import HOST
from runner.addresses import (
    DASHBOARD,
    MODEL,
    OFFLINE_MODEL,
    ROOT,
    SCHEDULER,
    SERVICES,
    Address,
    CannotRun,
    Service,
    environment,
    ports_to_start,
    settings,
)
from runner.state import State, users_folder
from runner.supervisor import Interrupted, Supervisor, note

COMMANDS = {
    "all": "every sample, one after the other",
    "up": "only the local services; you start a worker and a client in two other terminals",
    "reset": "delete all conversations and orchestrations; a copy is kept until the next reset",
    "test": "the tests, in a few minutes; --all adds kills and simulations; other arguments are passed to pytest",
    "prove": "kills every process of every sample at every step, and checks what is left; in about 3 minutes",
    "bench": "what durability costs on this machine; --quick takes less than a minute",
}


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show '│' shows '?'
    command, *arguments = arguments or ["--help"]
    code, supervisor = 2, Supervisor()
    try:
        if command in ("-h", "--help"):
            print(catalog())
            return 0
        if command == "reset":
            return reset(arguments)
        with supervisor:
            if command == "up":
                code = up(supervisor, arguments)
            elif command == "all":
                code = run_all(supervisor)
            else:
                code = run_sample(supervisor, find_sample(command), arguments)
    except CannotRun as problem:
        note(str(problem))
    except Interrupted:
        pass  # the supervisor has reported it
    if supervisor.signal:
        if supervisor.kept:
            note(supervisor.kept)
        return 128 + supervisor.signal
    return code


# Samples ---------------------------------------------------------------------------------------------------------


def find_sample(prefix: str) -> Path:
    """The one sample whose name begins with `prefix`, which may be `01_single_agent/` too. Raises CannotRun."""
    prefix = Path(prefix).name
    found = [folder for folder in samples() if folder.name.startswith(prefix)]
    if len(found) > 1:
        raise CannotRun(f"'{prefix}' may be {' or '.join(folder.name for folder in found)}.")
    if not found:
        names = [*(folder.name for folder in samples()), *COMMANDS]
        raise CannotRun(f"There is no sample or command '{prefix}'. There are: {', '.join(names)}.")
    return found[0]


def samples() -> list[Path]:
    """The samples' folders."""
    return sorted(worker.parent for worker in ROOT.glob("[0-9][0-9]_*/worker.py"))


def catalog() -> str:
    """The samples, each with the first sentence of its worker, and the commands."""
    entries = {}
    for sample in samples():
        text = ast.get_docstring(ast.parse((sample / "worker.py").read_text(encoding="utf-8"))) or ""
        entries[sample.name] = " ".join(text.split()).partition(". ")[0].rstrip(".")
    width = max(map(len, [*entries, *COMMANDS])) + 2
    return "\n".join(
        [
            "Samples: python3 run.py NAME [arguments for its client.py]; NAME may be just the number.",
            "         python3 run.py 07 review.py list runs another program of a sample.",
            *(f"  {name:{width}}{about}" for name, about in entries.items()),
            "",
            "Commands: python3 run.py COMMAND",
            *(f"  {name:{width}}{about}" for name, about in COMMANDS.items()),
        ]
    )


def run_sample(
    supervisor: Supervisor, sample: Path, arguments: list[str], stdin: int | None = None, dashboard: bool = True
) -> int:
    """Run worker and client, and the services that are missing, until the client ends; returns its exit code."""
    env = environment(sample) | {"RUN_AS": f"{run_py()} {sample.name.partition('_')[0]}"}
    if {"-h", "--help"}.isdisjoint(arguments):
        ports, found = ports_to_start(sample, env)
        if SCHEDULER in found:
            supervisor.kept = f"All is kept by the scheduler at {found[SCHEDULER]}."
        started, about_state = start_services(supervisor, ports, State())
        env = settings(sample, env, started)
        dashboard_port = free_port(DASHBOARD.port)
        if dashboard:
            started[DASHBOARD] = f"http://{HOST}:{dashboard_port}"
        if started:
            what = (f"{service.name} {address}{remark(service, about_state)}" for service, address in started.items())
            note("Started " + " · ".join(what))
        if found:
            note("Found " + " · ".join(f"{service.name} {address}" for service, address in found.items()))
        worker = supervisor.start_worker(sample, env)
        if not worker.ready:
            note(f"The worker did not start{worker.how_it_ended}.")
            return worker.exit_code or 1
        if dashboard:  # not earlier: it takes as long to start as the worker
            supervisor.start_service(DASHBOARD, "--port", str(dashboard_port), env=env)
    return supervisor.run_client(sample, arguments, users_folder(), env, stdin)


def run_all(supervisor: Supervisor) -> int:
    """Run every sample without arguments, and print a summary; 1 if one failed."""
    summary = [""]
    for sample in samples():
        note(f"\n== {sample.name}")
        began = time.monotonic()
        code = 2
        try:
            code = run_sample(supervisor, sample, [], stdin=subprocess.DEVNULL, dashboard=False)
        except CannotRun as problem:
            note(str(problem))
        finally:
            supervisor.stop()
        if supervisor.signal:
            raise Interrupted
        result = f"failed, exit code {code}" if code else "ok"
        summary.append(f"{sample.name:43}{result:22}{time.monotonic() - began:6.1f} s")
    print(*summary, sep="\n", flush=True)
    return int(any("failed" in line for line in summary))


def run_py() -> str:
    """The command that runs run.py from the user's folder."""
    return f"{'python' if sys.platform == 'win32' else 'python3'} {os.path.relpath(ROOT / 'run.py', users_folder())}"


# Services --------------------------------------------------------------------------------------------------------


def start_services(
    supervisor: Supervisor, ports: dict[Service, int], state: State | None
) -> tuple[dict[Service, str], str]:
    """Start services; returns their addresses, and where the scheduler's state is.

    If another scheduler uses that state already, the one started here joins it: it reports the other's address, and
    takes over when the other ends.
    """
    options = {service: ["--port", str(number)] for service, number in ports.items()}
    if SCHEDULER not in ports:
        return supervisor.start_services(options), ""
    if not state:
        supervisor.kept = "Nothing is kept: with --memory, the state is lost when the services stop."
        return supervisor.start_services(options), "state in memory"
    state.make_folder()
    supervisor.kept = f"All is kept, in {state}."
    used_by = state.used_by()
    options[SCHEDULER] += ["--state", str(state.file), "--share"]
    started = supervisor.start_services(options)
    joined = "joined that of another run.py, " if started[SCHEDULER] == used_by else ""
    return started, f"{joined}state in {state}"


def free_port(preferred: int) -> int:
    """This port, or another if it is in use."""
    if preferred and not is_taken(preferred):
        return preferred
    with socket.create_server((HOST, 0)) as free:
        return free.getsockname()[1]


def is_taken(number: int) -> bool:
    """Whether a program listens on this port."""
    return Address("port", f"http://{HOST}:{number}").answers()


def remark(service: Service, about_state: str) -> str:
    """A remark about a service, in parentheses."""
    text = {SCHEDULER: about_state, MODEL: "offline"}.get(service)
    return f" ({text})" if text else ""


def up(supervisor: Supervisor, arguments: list[str]) -> int:
    """Run the local services until a signal comes; 1 if one of them ends by itself."""
    parser = argparse.ArgumentParser(prog="run.py up", description="Run the local services until Ctrl-C.")
    for service in (*SERVICES, DASHBOARD):
        option = f"--{service.name}-port"
        parser.add_argument(option, type=port, default=service.port, help="0: any free one (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="store nothing: the state is lost when it stops")
    options = vars(parser.parse_args(arguments))
    ports = {service: options[f"{service.name}_port"] for service in (*SERVICES, DASHBOARD)}
    refuse_taken(ports, ["--memory"] if options["memory"] else [])

    state = None if options["memory"] else State()
    dashboard_port = free_port(ports.pop(DASHBOARD))
    started, about_state = start_services(supervisor, ports, state)
    env = {**os.environ, SCHEDULER.variable: started[SCHEDULER]}
    supervisor.start_service(DASHBOARD, "--port", str(dashboard_port), env=env)
    if state:
        about_state += f", {state.size()}"
    print(directions(started, about_state, f"http://{HOST}:{dashboard_port}"), flush=True)
    supervisor.wait()
    return 1


def port(text: str) -> int:
    """A port number; argparse prints this function's name when it raises ValueError."""
    if not 0 <= (number := int(text)) < 65536:
        raise ValueError
    return number


def refuse_taken(ports: dict[Service, int], options: list[str]) -> None:
    """Raises CannotRun if other programs use some of the ports, with the command that avoids them."""
    taken = {service: number for service, number in ports.items() if number and is_taken(number)}
    others = ports | dict.fromkeys(taken, 0)
    command = [run_py(), "up", *options]
    command += [f"--{service.name}-port {number}" for service, number in others.items() if number != service.port]
    if taken:
        in_use = (f"Port {number}, for the {service.name}, is in use." for service, number in taken.items())
        raise CannotRun("\n".join([*in_use, f"Stop what listens there, or choose others: {' '.join(command)}"]))


def directions(addresses: dict[Service, str], about_state: str, dashboard: str) -> str:
    """The addresses, and what to type in two terminals to use them."""
    variables = {service.variable: address for service, address in addresses.items()} | OFFLINE_MODEL
    if sys.platform == "win32":
        lines = [r".venv\Scripts\Activate.ps1", *(f'$env:{name} = "{value}"' for name, value in variables.items())]
    else:
        lines = ["source .venv/bin/activate", *(f"export {name}={value}" for name, value in variables.items())]
    as_in_example = all(address.endswith(f":{service.port}") for service, address in addresses.items())
    return "\n".join(
        [
            *(f"{service.name:11}{address}{remark(service, about_state)}" for service, address in addresses.items()),
            f"{DASHBOARD.name:11}{dashboard}",
            "\nTo use them, in each of two terminals in this folder:",
            *(f"  {line}" for line in lines),
            *(["(Or copy .env.example to .env once, instead of these settings.)"] if as_in_example else []),
            "and then, for example, in the first and in the second:",
            "  python 01_single_agent/worker.py",
            "  python 01_single_agent/client.py",
            "\nCtrl-C stops the services.",
        ]
    )


def reset(arguments: list[str]) -> int:
    """Remove the scheduler's state, and keep a copy until the next reset; 1 if the user answers no."""
    parser = argparse.ArgumentParser(prog="run.py reset", description="Delete all conversations and orchestrations.")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    asks = not parser.parse_args(arguments).yes
    state = State()
    if not state.parts():
        note(f"There is no state in {state}.")
        return 0
    state.reserve()
    if asks and not sys.stdin.isatty():
        raise CannotRun("`reset` asks first, and needs a terminal for that. `reset --yes` does not ask.")
    if asks and not agreed(f"This removes all conversations and orchestrations in {state} ({state.size()})."):
        note("Nothing was removed.")
        return 1
    note(f"Removed. A copy is in {state.remove()} until the next reset.")
    return 0


def agreed(what: str) -> bool:
    """Print what will be done, and ask; Ctrl-C and Ctrl-D mean no."""
    try:
        print(what, flush=True)
        return input("Go ahead? [y/N] ").strip().lower() in ("y", "yes")
    except (KeyboardInterrupt, EOFError):
        print()
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
