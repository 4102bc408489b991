"""What a reader may skip: one short file for each role. The lesson is in the files next to this folder."""

import os
import sys
from types import TracebackType

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC writes to stderr by itself; the programs report errors in a line


def _without_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):  # Ctrl-C while a program is still importing
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_traceback
