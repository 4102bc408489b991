"""Where the scheduler is, and who we are to it."""

import logging
from typing import Any

from durabletask.grpc_options import GrpcChannelOptions

from .program import UsageError, setting, without_password

DEFAULT_ENDPOINT = "http://localhost:8080"


def scheduler_address() -> str:
    """The setting ENDPOINT, as it may be printed."""
    return without_password(setting("ENDPOINT", DEFAULT_ENDPOINT))


def connection() -> dict[str, Any]:
    """Where the scheduler is, and who we are to it, for a client and for a worker. Raises UsageError."""
    endpoint = setting("ENDPOINT", DEFAULT_ENDPOINT).rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"ENDPOINT={scheduler_address()} must start with http:// (local) or https:// (Azure).")
    secure = endpoint.startswith("https://")
    # gRPC shares connections between the channels of a process: a worker that gives up a silent one would get it again.
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if not secure:  # by default, the pauses between attempts to connect grow to two minutes
        options += [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)]
    return {
        "host_address": endpoint,
        "taskhub": setting("TASKHUB", "default"),
        "secure_channel": secure,
        "token_credential": _azure_credential() if secure else None,
        "logger": logging.getLogger("durabletask"),  # without it, the SDK adds a log handler
        "channel_options": GrpcChannelOptions(
            raw_options=options,
            keepalive_time_ms=330_000,  # servers of gRPC refuse pings more often than every 5 minutes
            keepalive_timeout_ms=20_000,
        ),
    }


def _azure_credential() -> Any:
    from azure.identity import DefaultAzureCredential  # takes 0.2 s, and is not needed locally

    return DefaultAzureCredential()
