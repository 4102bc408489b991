"""The commands of run.py: the catalog, one sample, all samples, the local services alone."""

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

from local_services.addresses import (
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
from local_services.service import HOST
from local_services.supervisor import Interrupted, Supervisor, note, shell_code

COMMANDS = {
    "all": "every sample, one after the other",
    "up": "the local services alone, for a worker and a client in terminals of their own",
    "test": "the tests; arguments go to pytest",
    "bench": "what durability costs on this machine; --quick takes less than a minute",
}


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that has no '│' shows '?'
    if not arguments or arguments[0] in ("-h", "--help"):
        print(catalog())
        return 0

    code = 2
    with Supervisor() as supervisor:
        try:
            code = run_command(supervisor, arguments[0], arguments[1:])
        except CannotRun as problem:
            note(str(problem))
        except Interrupted:
            note("\nInterrupted, stopping.")
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
    """The samples' folders, also of those to come."""
    return sorted(ROOT.glob("[0-9][0-9]_*"))


def find_sample(prefix: str) -> Path:
    """The one sample whose name begins so; `01_single_agent/` will do too. Raises CannotRun if there is not one."""
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
    """The samples and the commands, a line each."""
    entries = {folder.name: lesson(folder) for folder in samples()}
    width = max(map(len, [*entries, *COMMANDS])) + 2
    return "\n".join(
        [
            "Samples: python3 run.py NAME [arguments for its client.py]; the number will do for a name",
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
    supervisor: Supervisor, sample: Path, arguments: list[str], stdin: int | None = None, dashboard: bool = True
) -> int:
    """Run worker and client, and the services that they lack, until the client ends; returns its exit code."""
    env = environment(sample)
    users_folder = os.environ.get("RUN_FROM") or os.getcwd()
    if not {"-h", "--help"}.isdisjoint(arguments):
        return supervisor.run_client(supervisor.start_client(sample, arguments, users_folder, env, stdin, waits=False))

    started: dict[Service, str] = {}
    try:
        needed = services_for(sample)
        ports = {service: port for service in needed if (port := port_to_start(service, env)) is not None}
        started = supervisor.start_services(ports)
        env_of_run = settings(sample, env, started)
        beside = {DASHBOARD: start_dashboard(supervisor, DASHBOARD.port, env_of_run)} if dashboard else {}
        tell_addresses(needed, started | beside, env)
        client = supervisor.start_client(sample, arguments, users_folder, env_of_run, stdin)
        worker = supervisor.start_worker(sample, env_of_run)
        if not worker.ready:
            note(f"The worker did not start{worker.how_it_ended}.")
            return shell_code(worker.exit_code) or 1
        code = supervisor.run_client(client)
    finally:
        # What the worker has in hand ends with a scheduler of this run anyway.
        supervisor.stop(hurry=SCHEDULER in started)
    if SCHEDULER in started:
        note("The scheduler of this run has ended, and with it all that it kept. `python3 run.py up` keeps one.")
    return code


def start_dashboard(supervisor: Supervisor, preferred_port: int, env: dict[str, str]) -> str:
    """Start the dashboard of this environment's scheduler and task hub, on another port if that is in use."""
    number = preferred_port
    if not number or is_taken(number):
        with socket.socket() as free:
            free.bind((HOST, 0))
            number = free.getsockname()[1]
    return supervisor.start_beside(DASHBOARD, number, env)


def tell_addresses(needed: list[Service], started: dict[Service, str], env: dict[str, str]) -> None:
    """Say in a line each what was started, and what was there."""
    if started:
        note("Started " + " · ".join(f"{service.name} {started[service]}{remark(service)}" for service in started))
    found = [f"{service.name} {named(service, env)}" for service in needed if service not in started]
    if found:
        note("Found " + " · ".join(found))


def remark(service: Service) -> str:
    """What to know of a service, in parentheses."""
    return f" ({service.remark})" if service.remark else ""


def run_all(supervisor: Supervisor) -> int:
    """Run every sample as it runs without arguments, and sum up; 1 if one failed."""
    summary: list[str] = []
    failed = False
    for sample in samples():
        if (sample / "worker.py").exists():
            note(f"\n== {sample.name}")
            began = time.monotonic()
            try:
                code = run_sample(supervisor, sample, [], stdin=subprocess.DEVNULL, dashboard=False)
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


# Services alone --------------------------------------------------------------------------------------------------


def up(supervisor: Supervisor, arguments: list[str]) -> int:
    """Run the local services until a signal comes; 1 if one of them ends by itself."""
    parser = argparse.ArgumentParser(prog="run.py up", description="Run the local services until Ctrl-C.")
    for service in (*SERVICES, DASHBOARD):
        option = f"--{service.name}-port"
        parser.add_argument(option, type=port, default=service.port, help="0: any free one (default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    ports = {service: options[f"{service.name}_port"] for service in (*SERVICES, DASHBOARD)}
    for service, number in ports.items():
        if is_taken(number):
            raise CannotRun(
                f"Port {number}, for the {service.name}, is in use. "
                f"Stop what listens there, or choose another: --{service.name}-port"
            )

    dashboard_port = ports.pop(DASHBOARD)
    started = supervisor.start_services(ports)
    env = {**os.environ, SCHEDULER.variable: started[SCHEDULER]}
    print(directions(started, start_dashboard(supervisor, dashboard_port, env)), flush=True)
    supervisor.wait()
    return 1


def directions(addresses: dict[Service, str], dashboard: str) -> str:
    """The addresses, and what to type in two terminals to use them."""
    variables = {service.variable: address for service, address in addresses.items()} | OFFLINE_MODEL
    if sys.platform == "win32":
        lines = [r".venv\Scripts\Activate.ps1", *(f'$env:{name} = "{value}"' for name, value in variables.items())]
    else:
        lines = ["source .venv/bin/activate", *(f"export {name}={value}" for name, value in variables.items())]
    as_in_example = all(address.endswith(f":{service.port}") for service, address in addresses.items())
    return "\n".join(
        [
            *(f"{service.name:11}{address}{remark(service)}" for service, address in addresses.items()),
            f"{DASHBOARD.name:11}{dashboard}",
            "\nTo use them, in each of two terminals in this folder:",
            *(f"  {line}" for line in lines),
            *(["(Instead of the settings, .env.example can be copied to .env, once.)"] if as_in_example else []),
            "and then, for instance, in the first and in the second:",
            "  python 01_single_agent/worker.py",
            "  python 01_single_agent/client.py",
            "\nCtrl-C stops the services.",
        ]
    )


def port(text: str) -> int:
    """A port number; argparse names this function when it raises ValueError."""
    number = int(text)
    if not 0 <= number < 65536:
        raise ValueError
    return number


def is_taken(number: int) -> bool:
    """Whether somebody listens on this port."""
    with suppress(OSError), socket.create_connection((HOST, number), timeout=1):
        return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
