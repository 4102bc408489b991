"""The offline model: serves chat completions with the protocol of Azure OpenAI and OpenAI."""

import os
import threading

import uvicorn

from local_services.offline_model.server import create_app
from local_services.service import HOST, listening_socket, report_ready, service_arguments, stop_order


def main() -> None:
    parser = service_arguments(__doc__, default_port=8081)
    for name, default in (("first-token", "0.1"), ("token", "0.005")):
        setting = f"OFFLINE_MODEL_{name.upper().replace('-', '_')}_SECONDS"
        parser.add_argument(
            f"--{name}-delay",
            type=float,
            default=os.environ.get(setting) or default,
            help=f"seconds (default: %(default)s, from {setting} if set)",
        )
    arguments = parser.parse_args()
    stopped = stop_order(arguments.supervised)
    listener = listening_socket(arguments.port)
    listener.listen(1024)  # clients that connect from here on are served, after a short wait

    app = create_app(arguments.first_token_delay, arguments.token_delay)
    server = uvicorn.Server(
        uvicorn.Config(app, access_log=False, log_config=None, log_level="error", lifespan="off", ws="none")
    )
    # Not in the main thread: there uvicorn would handle the signals itself.
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    serving.start()
    report_ready("model", f"http://{HOST}:{listener.getsockname()[1]}")
    stopped.wait()
    server.should_exit = True
    serving.join(timeout=1)  # for unfinished answers; a stream that takes longer is interrupted
    os._exit(0)


if __name__ == "__main__":
    main()
