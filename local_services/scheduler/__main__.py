"""The local scheduler: implements the gRPC service of the Durable Task Scheduler (DTS) on this machine.

With --state it stores everything in that file: every process may be killed at any moment, and work continues.
"""

import argparse
import os
import sys

from local_services.scheduler.ownership import Ownership
from local_services.scheduler.service import Scheduler
from local_services.scheduler.store import StateUnusable, Store
from local_services.service import StopOrder, report_ready, service_arguments, stop_order


def main() -> None:
    parser = service_arguments(__doc__, default_port=8080)
    parser.add_argument("--state", default="", metavar="FILE", help="keep the state in this file (default: in memory)")
    parser.add_argument(
        "--sync",
        choices=["normal", "full"],
        default="normal",
        help="normal: what was acknowledged survives the death of every process; full: it also survives a power "
        "failure, and each call takes as long as the disk needs to flush, often 0.1 to 4 ms (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="if another scheduler uses the file: print its address, and take over when it ends",
    )
    arguments = parser.parse_args()
    stopped = stop_order(arguments.supervised)
    try:
        serve(arguments, stopped)
    except StateUnusable as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(2) from None


def serve(arguments: argparse.Namespace, stopped: StopOrder) -> None:
    """Serve until asked to stop. Raises StateUnusable if the state file cannot be used."""
    port, joined = arguments.port, ""
    ownership = Ownership(arguments.state) if arguments.state else None
    if ownership and arguments.share:
        joined = ownership.stand_by(lambda address: report_ready("scheduler", address), stopped.wait)
        if joined is None:
            return
    elif ownership:
        ownership.take()
    if ownership:
        ownership.announce("")
    if joined:
        print(f"The other run's scheduler has ended; this one continues at {joined}.", file=sys.stderr)
        port = int(joined.rpartition(":")[2])
    scheduler = Scheduler(Store(arguments.state, full_sync=arguments.sync == "full"))
    address = scheduler.start(port)
    if ownership:
        ownership.announce(address)
    if not joined:
        report_ready("scheduler", address)
    scheduler.run(stopped)
    os._exit(0)  # ends all streams together: if they ended one by one, clients and workers would print gRPC's errors


if __name__ == "__main__":
    main()
