"""The commands of run.py: the list, one sample, all samples, the local services only, removing their state."""

import argparse
import ast
import io
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from local_services.service import HOST
from runner.addresses import (
    DASHBOARD,
    OFFLINE_MODEL,
    ROOT,
    SCHEDULER,
    SERVICES,
    CannotRun,
    Service,
    environment,
    named,
    port_to_start,
    services_for,
    settings,
)
from runner.state import State, state
from runner.supervisor import Interrupted, Supervisor, note, shell_code

COMMANDS = {
    "all": "every sample, one after the other",
    "up": "only the local services; you start a worker and a client in two other terminals",
    "reset": "delete all conversations and orchestrations; a copy is kept until the next reset",
    "test": "the tests; arguments are passed to pytest",
    "bench": "what durability costs on this machine; --quick takes less than a minute",
}


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that cannot show '│' shows '?'
    if not arguments or arguments[0] in ("-h", "--help"):
        print(catalog())
        return 0
    code = 2
    if arguments[0] == "reset":  # starts nothing
        try:
            return reset(arguments[1:])
        except CannotRun as problem:
            note(str(problem))
            return code
    with Supervisor() as supervisor:
        try:
            code = run_command(supervisor, arguments[0], arguments[1:])
        except CannotRun as problem:
            note(str(problem))
        except Interrupted:
            pass  # the supervisor has reported it
    return 128 + supervisor.signal if supervisor.signal else code


def run_command(supervisor: Supervisor, command: str, arguments: list[str]) -> int:
    """Run a command that starts something. Raises CannotRun and Interrupted."""
    if command == "up":
        return up(supervisor, arguments)
    if command == "all":
        return run_all(supervisor)
    return run_sample(supervisor, find_sample(command), arguments)


# Samples ---------------------------------------------------------------------------------------------------------


def samples() -> list[Path]:
    """The samples' folders, also those without a sample yet."""
    return sorted(ROOT.glob("[0-9][0-9]_*"))


def find_sample(prefix: str) -> Path:
    """The one sample whose name begins with `prefix`, which may be `01_single_agent/` too. Raises CannotRun."""
    prefix = Path(prefix).name
    found = [folder for folder in samples() if folder.name.startswith(prefix)]
    if len(found) > 1:
        raise CannotRun(f"'{prefix}' may be {' or '.join(folder.name for folder in found)}.")
    if not found:
        names = [*(folder.name for folder in samples()), *COMMANDS]
        raise CannotRun(f"There is no sample or command '{prefix}'. There are: {', '.join(names)}.")
    if not (found[0] / "worker.py").exists():
        raise CannotRun(f"{found[0].name} is still to come.")
    return found[0]


def catalog() -> str:
    """The samples and the commands, one per line."""
    entries = {folder.name: lesson(folder) for folder in samples()}
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


def lesson(sample: Path) -> str:
    """What the sample shows: the first sentence of its worker."""
    worker = sample / "worker.py"
    if not worker.exists():
        return "to come"
    text = ast.get_docstring(ast.parse(worker.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def run_sample(
    supervisor: Supervisor, sample: Path, arguments: list[str], stdin: int | None = None, alone: bool = True
) -> int:
    """Run worker and client, and the services that are missing, until the client ends; returns its exit code."""
    users_folder = os.environ.get("RUN_FROM") or os.getcwd()
    env = environment(sample) | {"RUN_AS": how_it_is_run(sample, users_folder)}
    if not {"-h", "--help"}.isdisjoint(arguments):
        return supervisor.run_client(supervisor.start_client(sample, arguments, users_folder, env, stdin, waits=False))

    started: dict[Service, str] = {}
    code = 2
    try:
        needed = services_for(sample)
        ports = {service: port for service in needed if (port := port_to_start(service, env)) is not None}
        started, state_remark = start_services(supervisor, ports, state())
        env_of_run = settings(sample, env, started)
        beside = {DASHBOARD: start_dashboard(supervisor, DASHBOARD.port, env_of_run)} if alone else {}
        tell_addresses(needed, started | beside, env, state_remark)
        client = supervisor.start_client(sample, arguments, users_folder, env_of_run, stdin)
        worker = supervisor.start_worker(sample, env_of_run)
        if not worker.ready:
            note(f"The worker did not start{worker.how_it_ended}.")
            return shell_code(worker.exit_code) or 1
        code = 130  # if it is interrupted
        code = supervisor.run_client(client)
    finally:
        # The worker's unfinished work is kept: it is redelivered to another worker, now or in the next run.
        supervisor.stop(hurry=SCHEDULER in started)
        if supervisor.signal and SCHEDULER in started:
            note(f"All is kept, in {state()}.")
    return code


def how_it_is_run(sample: Path, users_folder: str) -> str:
    """The command that runs this sample again from the user's folder, for the client to show."""
    program = os.path.relpath(ROOT / "run.py", users_folder)
    return f"{'python' if sys.platform == 'win32' else 'python3'} {program} {sample.name.partition('_')[0]}"


def start_services(
    supervisor: Supervisor, ports: dict[Service, int], kept: State | None
) -> tuple[dict[Service, str], str]:
    """Start services; returns their addresses, and a remark about the scheduler's state.

    If another scheduler uses that state already, the one started here joins it: it reports the other's address, and
    takes over when the other ends.
    """
    if SCHEDULER not in ports or kept is None:
        return supervisor.start_services(ports, {}), "state in memory"
    kept.make_folder()
    used_by = kept.used_by()
    started = supervisor.start_services(ports, {SCHEDULER: ["--state", str(kept.file), "--share"]})
    joined = "joined that of another run.py, " if started[SCHEDULER] == used_by else ""
    return started, f"{joined}state in {kept}"


def start_dashboard(supervisor: Supervisor, preferred_port: int, env: dict[str, str]) -> str:
    """Start the dashboard for this environment's scheduler and task hub, on another port if this one is in use."""
    number = preferred_port
    if not number or is_taken(number):
        with socket.socket() as free:
            free.bind((HOST, 0))
            number = free.getsockname()[1]
    return supervisor.start_beside(DASHBOARD, number, env)


def tell_addresses(needed: list[Service], started: dict[Service, str], env: dict[str, str], state_remark: str) -> None:
    """Print one line with what was started, and one with what was running already."""
    if started:
        what = (f"{service.name} {address}{remark(service, state_remark)}" for service, address in started.items())
        note("Started " + " · ".join(what))
    found = [f"{service.name} {named(service, env)}" for service in needed if service not in started]
    if found:
        note("Found " + " · ".join(found))


def remark(service: Service, state_remark: str) -> str:
    """A remark about a service, in parentheses."""
    text = state_remark if service is SCHEDULER else service.remark
    return f" ({text})" if text else ""


def run_all(supervisor: Supervisor) -> int:
    """Run every sample without arguments, and print a summary; 1 if one failed."""
    summary: list[str] = []
    failed = False
    for sample in samples():
        if (sample / "worker.py").exists():
            note(f"\n== {sample.name}")
            began = time.monotonic()
            try:
                code = run_sample(supervisor, sample, [], stdin=subprocess.DEVNULL, alone=False)
            except CannotRun as problem:
                note(str(problem))
                code = 2
            if supervisor.signal:
                raise Interrupted
            failed = failed or code != 0
            result = f"failed, exit code {code}" if code else "ok"
            summary.append(f"{sample.name:43}{result:22}{time.monotonic() - began:6.1f} s")
    print("", *summary, sep="\n", flush=True)
    return 1 if failed else 0


# Only the services -----------------------------------------------------------------------------------------------


def up(supervisor: Supervisor, arguments: list[str]) -> int:
    """Run the local services until a signal comes; 1 if one of them ends by itself."""
    parser = argparse.ArgumentParser(prog="run.py up", description="Run the local services until Ctrl-C.")
    for service in (*SERVICES, DASHBOARD):
        option = f"--{service.name}-port"
        parser.add_argument(option, type=port, default=service.port, help="0: any free one (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="store nothing: the state is lost when it stops")
    options = vars(parser.parse_args(arguments))
    ports = {service: options[f"{service.name}_port"] for service in (*SERVICES, DASHBOARD)}
    for service, number in ports.items():
        if is_taken(number):
            raise CannotRun(
                f"Port {number}, for the {service.name}, is in use. "
                f"Stop what listens there, or choose another: --{service.name}-port"
            )

    dashboard_port = ports.pop(DASHBOARD)
    kept = None if options["memory"] else state()
    started, state_remark = start_services(supervisor, ports, kept)
    env = {**os.environ, SCHEDULER.variable: started[SCHEDULER]}
    if kept:
        state_remark += f", {kept.size}"
    print(directions(started, state_remark, start_dashboard(supervisor, dashboard_port, env)), flush=True)
    supervisor.wait()
    return 1


def directions(addresses: dict[Service, str], state_remark: str, dashboard: str) -> str:
    """The addresses, and what to type in two terminals to use them."""
    variables = {service.variable: address for service, address in addresses.items()} | OFFLINE_MODEL
    if sys.platform == "win32":
        lines = [r".venv\Scripts\Activate.ps1", *(f'$env:{name} = "{value}"' for name, value in variables.items())]
    else:
        lines = ["source .venv/bin/activate", *(f"export {name}={value}" for name, value in variables.items())]
    as_in_example = all(address.endswith(f":{service.port}") for service, address in addresses.items())
    return "\n".join(
        [
            *(f"{service.name:11}{address}{remark(service, state_remark)}" for service, address in addresses.items()),
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
    kept = state()
    if not kept.exists():
        note(f"There is no state in {kept}.")
        return 0
    if kept.used_by():
        raise CannotRun(kept.in_use)
    if asks and not sys.stdin.isatty():
        raise CannotRun("`reset` asks first, and needs a terminal for that. `reset --yes` does not ask.")
    if asks and not agreed(f"This removes all conversations and orchestrations in {kept} ({kept.size})."):
        note("Nothing was removed.")
        return 1
    note(f"Removed. A copy is in {kept.remove()} until the next reset.")
    return 0


def agreed(what: str) -> bool:
    """Print what will be done, and ask; Ctrl-C and Ctrl-D mean no."""
    try:
        print(what, flush=True)
        return input("Go ahead? [y/N] ").strip().lower() in ("y", "yes")
    except (KeyboardInterrupt, EOFError):
        print()
        return False


def port(text: str) -> int:
    """A port number; argparse prints this function's name when it raises ValueError."""
    number = int(text)
    if not 0 <= number < 65536:
        raise ValueError
    return number


def is_taken(number: int) -> bool:
    """Whether a program listens on this port."""
    with suppress(OSError), socket.create_connection((HOST, number), timeout=1):
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
