"""The dashboard of a task hub, in a browser. ENDPOINT and TASKHUB select the hub, like for the samples."""

import os
import socket
import threading
import traceback
from contextlib import suppress
from pathlib import Path

from local_services.service import HOST, listening_socket, report_ready, service_arguments, stop_order

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    arguments = service_arguments(__doc__, default_port=8082).parse_args()
    stopped = stop_order(arguments.supervised)
    if arguments.supervised and hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(10)  # so that its start does not slow down the sample's start
    listener = listening_socket(arguments.port)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.listen(128)  # an early browser waits, and is not refused
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    stopped.wait()
    os._exit(0)  # open pages would delay a normal exit; there is nothing to save


def serve(listener: socket.socket) -> None:
    """Answer browsers until the process ends. Runs in a thread, so that the process can be stopped meanwhile."""
    try:
        import uvicorn  # these take a second or two
        from dotenv import load_dotenv

        from local_services.dashboard.app import create_app

        load_dotenv(ROOT / ".env")
        port = listener.getsockname()[1]
        app = create_app([f"{HOST}:{port}", f"localhost:{port}"])
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="error", lifespan="on"))
        report_ready("dashboard", f"http://{HOST}:{port}")
        server.run(sockets=[listener])
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
