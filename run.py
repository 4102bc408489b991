#!/usr/bin/env python3
"""Runs the samples and their tests: `python3 run.py` lists them.

It creates .venv next to this file, installs what the command needs, and runs `runner` or pytest with it.
It has no f-strings and no annotations, so that an old Python can run it far enough to say that it is too old.
"""
# ruff: noqa: RUF005, S606, UP031, UP036

import sys

if sys.version_info < (3, 10):
    sys.exit("These samples need Python 3.10 or newer; this is Python %d.%d." % sys.version_info[:2])

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
GROUPS = ["local", "bench", "test"]  # of pyproject.toml; each contains those before it
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main(arguments):
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):  # the catalog needs nothing installed
        hand_over([sys.executable, "-m", "runner"])
    elif command == "test":
        prepare("test")
        hand_over([str(PYTHON), "-m", "pytest"] + arguments[1:])
    elif command == "prove":
        prepare("local")
        os.environ["RUN_FROM"] = os.getcwd()
        hand_over([str(PYTHON), "-m", "runner.prove"] + arguments[1:])
    elif command == "bench":
        prepare("local")  # for the sample that it times
        prepare("bench")
        os.environ["RUN_FROM"] = os.getcwd()
        hand_over([str(PYTHON), "-m", "benchmarks"] + arguments[1:])
    else:
        prepare("local")
        os.environ["RUN_FROM"] = os.getcwd()  # file names among the client's arguments are relative to it
        if os.name != "nt" and command != "reset":  # from here on, Ctrl-C waits until the supervisor can handle it
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        hand_over([str(PYTHON), "-m", "runner"] + arguments)


def hand_over(command):
    os.chdir(str(ROOT))
    if os.name != "nt":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which then ends this process too
    sys.exit(subprocess.call(command))


def prepare(group):
    """Install what the samples and this dependency group need into .venv, unless that is done already."""
    requirements = sorted(ROOT.glob("[0-9][0-9]_*/requirements.txt"))
    wanted = hashlib.sha256(str(sys.version_info[:2]).encode())
    for file in requirements + [ROOT / "pyproject.toml", CONSTRAINTS]:
        wanted.update(file.read_bytes())
    stamps = [VENV / ("installed-" + larger) for larger in GROUPS[GROUPS.index(group) :]]

    def is_there():
        done = [stamp.read_text() for stamp in stamps if stamp.exists()]
        return PYTHON.exists() and wanted.hexdigest() in done

    if is_there():
        return
    with only_installer():
        if not is_there():  # another run.py may have installed it meanwhile
            install([part for file in requirements for part in ("-r", str(file))] + ["--group", group])
            stamps[0].write_text(wanted.hexdigest())


def install(what):
    uv = shutil.which("uv")
    if not venv_works():
        make_venv(uv)
    pinned = ["-c", str(CONSTRAINTS)]
    if uv:
        # Compiled, as pip does: where PYTHONDONTWRITEBYTECODE is set, every program would compile it all again.
        pip = [uv, "pip", "install", "--compile-bytecode", "--python", str(PYTHON)] + pinned
        run("Installing what the samples need, with uv", pip + what)
    else:
        pip = [str(PYTHON), "-m", "pip", "install"] + pinned
        run("Updating pip", pip + ["pip"])  # an old one does not know --group
        run("Installing what the samples need (once, less than a minute)", pip + what)


@contextmanager
def only_installer():
    """Wait until no other run.py installs. The lock ends with this process and its installer, however they end."""
    with open(__file__, "rb") as file:
        os.set_inheritable(file.fileno(), True)  # an installer continues when its run.py is killed
        if not locked(file):
            sys.stderr.write("Another run.py is installing; waiting for it ...\n")
            while not locked(file):
                time.sleep(0.1)
        yield


def locked(file):
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 30)  # locked bytes cannot be read, so not those of the program
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def venv_works():
    """Whether .venv is complete, and has the Python version that runs this."""
    check = "import sys, pip; sys.exit(sys.prefix == sys.base_prefix or sys.version_info[:2] != %r)"
    check %= (sys.version_info[:2],)
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", check], stderr=subprocess.DEVNULL).returncode == 0


def make_venv(uv):
    python = getattr(sys, "_base_executable", None) or sys.executable  # not the one in the .venv to be deleted
    command = [uv, "venv", "--seed", "--python", python, str(VENV)] if uv else [python, "-m", "venv", str(VENV)]
    if not uv:
        try:
            import ensurepip  # noqa: F401
        except ImportError:
            sys.exit("This Python cannot make virtual environments. On Debian or Ubuntu: sudo apt install python3-venv")
    shutil.rmtree(str(VENV), ignore_errors=True)
    run("Making .venv for Python %d.%d" % sys.version_info[:2], command)


def run(doing, command):
    """Run a step of the installation: a terminal shows its latest line, and all its errors if it fails."""
    terminal = sys.stderr.isatty()
    sys.stderr.write(doing + " ...\n")
    quiet = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USER="0", PYTHONUTF8="1")
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=str(ROOT), env=quiet, stdout=subprocess.PIPE, stderr=errors, close_fds=False
        )
        try:
            for line in process.stdout or ():
                if terminal:
                    text = line.decode("utf-8", "replace").strip()[: shutil.get_terminal_size().columns - 4]
                    sys.stderr.write("\r\x1b[K  " + text)
            process.wait()
        finally:
            process.kill()
            sys.stderr.write("\r\x1b[K" if terminal else "")
        if process.returncode:
            errors.seek(0)
            sys.stderr.write(errors.read().decode("utf-8", "replace"))
            sys.exit(
                "That did not work (the reason is above; without a network there is nothing to install from).\n"
                "Run the same command to try again; if it fails again, delete the folder .venv first."
            )


if __name__ == "__main__":
    # Ends the installer too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. Run the same command to continue.\n")
        sys.exit(130)
