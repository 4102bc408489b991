"""Worker and client in one process, for a first look and for debugging. A real system keeps them apart."""

import client
import worker
from support import run, running


def main() -> None:
    """Run the client while the worker runs beside it."""
    with running(worker.create_worker()):
        client.main()


if __name__ == "__main__":
    run(main)
