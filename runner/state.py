"""Where run.py keeps the scheduler's state, and how `run.py reset` removes it."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.addresses import ROOT, SCHEDULER, Address, CannotRun, environment

FILE = "scheduler.db"
COPY = "before-reset"  # a folder inside the state's folder: what the latest reset removed


@dataclass(frozen=True)
class State:
    """A folder with the scheduler's file in it."""

    folder: Path

    def __str__(self) -> str:
        """The folder, relative to the user's current one."""
        here = os.environ.get("RUN_FROM") or os.getcwd()
        return str(self.folder.relative_to(here) if self.folder.is_relative_to(here) else self.folder)

    @property
    def file(self) -> Path:
        """The file for the scheduler's --state."""
        return self.folder / FILE

    @property
    def _lock(self) -> Path:  # the scheduler that uses the state locks this file, and writes its address into it
        return self.folder / f"{FILE}.lock"

    @property
    def _parts(self) -> list[Path]:
        return [path for ending in ("-wal", "-shm", "") if (path := self.folder / (FILE + ending)).exists()]

    @property
    def size(self) -> str:
        """Its size, for a person to read."""
        return f"{sum(path.stat().st_size for path in self._parts) / 1e6:.1f} MB"

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
        address = self._lock.read_text(encoding="utf-8", errors="replace").strip() if self._lock.exists() else ""
        with suppress(CannotRun):  # the file holds no address
            return address if Address(SCHEDULER.variable, address).answers() else ""
        return ""

    @property
    def in_use(self) -> str:
        """The message if it cannot be removed because it is in use."""
        return f"A scheduler uses the state in {self}. Stop it first, with Ctrl-C in its run.py."

    def exists(self) -> bool:
        """Whether there is something to remove."""
        return bool(self._parts)

    def remove(self) -> "State":
        """Move it into the folder of the latest reset, and return that. Raises CannotRun if it is in use."""
        from local_services.scheduler.ownership import Ownership, StateUnusable

        try:
            ownership = Ownership(str(self.file))
            ownership.take()
        except StateUnusable:
            raise CannotRun(self.in_use) from None
        copy = self.folder / COPY
        try:
            copy.mkdir(mode=0o700, exist_ok=True)
            for old in copy.iterdir():
                old.unlink()
            for part in self._parts:
                part.replace(copy / part.name)
        except OSError as problem:
            raise CannotRun(f"The state in {self} cannot be removed: {problem.strerror}.") from None
        return State(copy)


def state() -> State:
    """This collection's state: in STATE_DIRECTORY, or in .state; a relative path is relative to the collection."""
    return State(ROOT / Path(environment(ROOT).get("STATE_DIRECTORY") or ".state").expanduser())
