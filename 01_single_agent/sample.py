"""Worker and client in one process, for a first look and for debugging. A real system has a process for each."""

from hosting.program import run
from hosting.scheduler import running

import client
import worker


def main() -> None:
    """Run the client while the worker runs next to it; the client's options are checked first."""
    client.parse_arguments()
    with running(worker.create_worker()):
        client.main()


if __name__ == "__main__":
    run(main)
