"""Refuses requests of other web pages: a page in the same browser must not read or act here."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# NiceGUI compiles templates to functions in the browser, and writes styles into the page.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self' {websockets}; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class OwnPagesOnly:
    """Answers only requests to its own addresses, and if a page sent the request, only its own pages.

    Checking `Host` prevents DNS rebinding, where another site's name points to this machine. Checking `Origin`, which
    browsers send with every websocket and every request that changes something, prevents requests of other sites.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self._hosts = set(hosts)
        policy = CONTENT_SECURITY_POLICY.format(websockets=" ".join(f"ws://{host}" for host in hosts))
        self._headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-frame-options", b"DENY"),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif self._is_own(Headers(scope=scope)):
            await self.app(scope, receive, self._with_headers(send))
        elif scope["type"] == "websocket":
            await receive()  # the request to connect must be received before it can be refused
            await send({"type": "websocket.close", "code": 1008})
        else:
            where = " or ".join(f"http://{host}" for host in sorted(self._hosts))
            await PlainTextResponse(f"Open the dashboard at {where}.", 403)(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        return headers.get("host") in self._hosts and (
            origin is None or origin in {f"http://{host}" for host in self._hosts}
        )

    def _with_headers(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        return sending
