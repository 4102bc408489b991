"""The dashboard as a web application."""

import logging
from collections.abc import Collection
from pathlib import Path

from fastapi import FastAPI
from nicegui import ui
from starlette.types import ASGIApp

from local_services.dashboard.guard import OwnPagesOnly
from local_services.dashboard.orchestration import orchestration_page
from local_services.dashboard.overview import overview_page
from local_services.dashboard.session import session_page

STYLE = Path(__file__).with_name("style.css")
FAVICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7"
fill="#3b6fd4"/><path d="M7 10h12M7 16h18M13 22h12" stroke="#fff" stroke-width="3.4" stroke-linecap="round"/></svg>"""


def create_app(hosts: Collection[str]) -> ASGIApp:
    """The application, which answers only at these addresses (host and port)."""
    ui.add_css(STYLE, shared=True)
    ui.page("/", title="Durable agents", dark=None)(overview_page)
    ui.page("/orchestration", title="Orchestration", dark=None)(orchestration_page)
    ui.page("/session", title="Agent session", dark=None)(session_page)
    app = FastAPI(openapi_url=None)
    ui.run_with(
        app,
        title="Durable agents",
        favicon=FAVICON,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    logging.getLogger("durabletask").setLevel(logging.CRITICAL)  # the page shows the scheduler's problems
    return OwnPagesOnly(app, hosts)
