"""Only the scheduler that holds the lock uses the state file. Others may wait, and take over when it ends."""

import os
from collections.abc import Callable
from typing import IO

from local_services.scheduler.store import StateUnusable, explained

STANDBY_SECONDS = 0.2  # between two attempts to take over


class Ownership:
    """The lock of a state file. It ends with the process that holds it, however that ends.

    The lock's file contains the address of the scheduler that holds it.
    """

    def __init__(self, state: str) -> None:
        self._state = state
        path = f"{os.path.realpath(state)}.lock"  # the same for all links to the file
        with explained(state):
            self._file: IO[str] = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+")

    def take(self) -> None:
        """Take the lock. Raises StateUnusable if another scheduler has it."""
        if not self._lock():
            raise StateUnusable(
                f"{self._state} is in use by the scheduler at {self.address or 'an address not known yet'}. "
                "Stop that one, or choose another file with --state."
            )

    def stand_by(self, joined: Callable[[str], None], wait: Callable[[float], bool]) -> str | None:
        """Wait until the lock is free, and take it.

        Args:
            joined: called once with the address of the scheduler that has it.
            wait: waits for this number of seconds; returns whether to give up.

        Returns: the address to take over; '' if nobody had the lock; None if it has given up.
        """
        address = ""
        while not self._lock():
            if not address and (address := self.address):
                joined(address)
            if wait(STANDBY_SECONDS if address else 0.02):
                return None
        return address

    @property
    def address(self) -> str:
        """The address of the scheduler that has the lock; '' while it is starting."""
        self._file.seek(0)
        return self._file.read().strip()

    def announce(self, address: str) -> None:
        """Write the address of the scheduler that has the lock; '' while it is starting."""
        with explained(self._state):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(address)
            self._file.flush()

    def _lock(self) -> bool:
        try:
            if os.name == "nt":
                import msvcrt

                self._file.seek(1 << 30)  # locked bytes cannot be read, so not those of the address
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            else:
                import fcntl

                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
