"""Where run.py keeps the scheduler's state, and how `run.py reset` removes it."""

import os
from contextlib import suppress
from pathlib import Path

from runner.addresses import ROOT, SCHEDULER, Address, CannotRun, environment

FILE = "scheduler.db"


class State:
    """The folder of the scheduler's file: STATE_DIRECTORY or .state, relative to the collection's folder."""

    def __init__(self) -> None:
        self.folder = ROOT / Path(environment(ROOT).get("STATE_DIRECTORY") or ".state").expanduser()
        self.file = self.folder / FILE
        self._lock = self.folder / f"{FILE}.lock"  # locked by the scheduler that uses the file; contains its address

    def __str__(self) -> str:
        return shown(self.folder)

    def parts(self) -> list[Path]:
        """The files that are there."""
        return [path for ending in ("-wal", "-shm", "") if (path := self.folder / (FILE + ending)).exists()]

    def size(self) -> str:
        """Their size, for a person to read."""
        return f"{sum(path.stat().st_size for path in self.parts()) / 1e6:.1f} MB"

    def make_folder(self) -> None:
        """Create the folder if it is missing, only for its owner. Raises CannotRun if it cannot be written to."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.touch(0o600)
        except OSError as problem:
            raise CannotRun(
                f"No state can be kept in {self} ({problem.strerror}). Set STATE_DIRECTORY to another folder."
            ) from None

    def used_by(self) -> str:
        """The address of the scheduler that uses it now, or nothing."""
        address = self._lock.read_text(encoding="utf-8", errors="replace").strip()
        with suppress(CannotRun):  # the file contains no address
            return address if Address(SCHEDULER.variable, address).answers() else ""
        return ""

    def reserve(self) -> None:
        """Keep schedulers from using it until this process ends. Raises CannotRun if one uses it."""
        from local_services.scheduler.ownership import Ownership, StateUnusable

        try:
            self._ownership = Ownership(str(self.file))
            self._ownership.take()
        except StateUnusable:
            raise CannotRun(
                f"A scheduler uses the state in {self}. Stop it first, with Ctrl-C in its run.py."
            ) from None

    def remove(self) -> str:
        """Move it into the folder of the latest reset, and return that folder."""
        copy = self.folder / "before-reset"
        try:
            copy.mkdir(mode=0o700, exist_ok=True)
            for old in copy.iterdir():
                old.unlink()
            for part in self.parts():
                part.replace(copy / part.name)
        except OSError as problem:
            raise CannotRun(f"The state in {self} cannot be removed: {problem.strerror}.") from None
        return shown(copy)


def users_folder() -> str:
    """The folder in which the user has typed the command."""
    return os.environ.get("RUN_FROM") or os.getcwd()


def shown(folder: Path) -> str:
    """The folder as the user may type it: relative to the current one if it is inside."""
    here = users_folder()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
