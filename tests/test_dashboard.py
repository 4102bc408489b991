"""The dashboard in a real browser, with real samples: it shows what they do, and its actions work."""

import http.client
import json
import logging
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Process, Sample, Start, clean_environment, eventually
from durabletask.azuremanaged.client import DurableTaskSchedulerClient
from durabletask.azuremanaged.worker import DurableTaskSchedulerWorker
from durabletask.client import TaskHubGrpcClient
from durabletask.serialization import JsonDataConverter
from durabletask.task import OrchestrationContext
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from scripted_model import ScriptedModel

from local_services.redis_server import redis_program

pytestmark = pytest.mark.xdist_group("dashboard")  # its services are started once

PROGRAMS = ["chromium", "chromium-browser", "google-chrome", "chrome"]
CHROMIUM = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
CHROMIUM_OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
HOSTILE = """<img src=x onerror="alert('x')"><script>alert("x")</script>{{ alert('x') }} end\n%%{init: 1}%% "]:#;"""
LOGGER = logging.getLogger("durabletask")
LIVE = 2_000  # milliseconds within which a change must be visible

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium or Chrome on the PATH")
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def dashboard(scheduler: str) -> Iterator[str]:
    """The address of a dashboard of the tests' scheduler, for any task hub."""
    process = start_dashboard(Process, ENDPOINT=scheduler)
    yield address(process)
    process.stop()
    assert process.errors == "", process.errors


def start_dashboard(start: Callable[..., Process], *options: str, **settings: str) -> Process:
    command = [sys.executable, "-m", "local_services.dashboard", *(options or ("--port", "0"))]
    return start(*command, env=clean_environment(**settings))


def address(process: Process) -> str:
    return process.wait_for(r"dashboard ready: (\S+)")[1]


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A browser tab; no page may send requests to other machines, or run code from a payload."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    faults: list[str] = []
    tab.on("console", lambda message: faults.append(message.text) if "script" in message.text else None)
    tab.add_init_script("window.alert = text => console.error(`a script ran: ${text}`)")
    tab.on("pageerror", lambda error: faults.append(f"error in the page: {error}"))
    tab.on("request", lambda request: faults.append(request.url) if not is_local(request.url) else None)
    yield tab
    context.close()
    assert faults == []


def is_local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


@pytest.fixture
def worker(scheduler: str, hub: str) -> Iterator[None]:
    """A worker whose only orchestration waits for the event `go`."""

    def patient(context: OrchestrationContext, _: Any) -> Any:
        yield context.wait_for_external_event("go")

    patience = DurableTaskSchedulerWorker(
        host_address=scheduler, taskhub=hub, token_credential=None, secure_channel=False, logger=LOGGER
    )
    patience.add_orchestrator(patient)
    with patience:
        patience.start()
        yield


@pytest.fixture
def client(scheduler: str, hub: str) -> Iterator[TaskHubGrpcClient]:
    with scheduler_client(scheduler, hub) as connected:
        yield connected


def scheduler_client(endpoint: str, hub: str, **options: Any) -> TaskHubGrpcClient:
    return DurableTaskSchedulerClient(
        host_address=endpoint, taskhub=hub, token_credential=None, secure_channel=False, logger=LOGGER, **options
    )


def started(sample: Sample, *arguments: str, **settings: str) -> str:
    """Start the sample's orchestration; returns the instance id."""
    return sample.run_client(*arguments, "--no-wait", **settings).output.strip()


def orchestration_url(dashboard: str, hub: str, instance: str) -> str:
    return f"{dashboard}/orchestration?hub={hub}&id={instance}"


def card(page: Page, title: str) -> Locator:
    """A payload's card, by its title."""
    return page.locator(".card", has=page.get_by_role("heading", name=title, exact=True))


# Through the samples ------------------------------------------------------------------------------------------------


def test_two_agents_at_once_are_two_bars_that_overlap(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample], model: ScriptedModel
) -> None:
    model.held = threading.Event()
    experts = sample("05")
    experts.start_worker()
    started(experts)
    page.goto(f"{dashboard}/?hub={hub}")
    page.get_by_role("link", name="multi_agent_concurrent_orchestration").click()
    expect(page.locator(".bar.agent.open")).to_have_count(2)  # while they work
    model.held.set()
    expect(page.locator(".status")).to_have_text("Completed")
    expect(page.locator(".bar.agent.open")).to_have_count(0)
    boxes = [bar.bounding_box() or {} for bar in page.locator(".bar.agent").all()]
    assert len(boxes) == 2
    begin, end = max(box["x"] for box in boxes), min(box["x"] + box["width"] for box in boxes)
    widest = max(box["width"] for box in boxes)
    assert end - begin > 0.8 * widest
    expect(card(page, "Input")).to_contain_text("What is temperature?")
    expect(card(page, "Output")).to_contain_text('"physicist": "')
    diagram = page.locator(".diagram svg")
    expect(diagram).to_contain_text("ChemistAgent")
    expect(diagram).to_contain_text("What is temperature?")
    page.get_by_role("link", name="PhysicistAgent").click()
    expect(page.locator(".entry.request")).to_contain_text("What is temperature?")
    expect(page.get_by_role("link", name="from an orchestration")).to_be_visible()


def test_a_draft_is_read_rejected_and_approved(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample], model: ScriptedModel, tmp_path: Path
) -> None:
    writer = sample("07")
    writer.start_worker(CONTENT_DIRECTORY=str(tmp_path))
    instance = started(writer, "paper maps")
    page.goto(f"{dashboard}/?hub={hub}")
    expect(page.get_by_text("Requesting human feedback on draft 1 of 3")).to_be_visible()
    page.get_by_role("link", name="content_generation_hitl_orchestration").click()
    expect(page.locator(".draft")).to_contain_text("paper maps")
    expect(page.locator(".bar.event.open")).to_be_visible()

    page.get_by_role("button", name="Reject with feedback").click()
    page.get_by_role("button", name="Reject", exact=True).click()
    expect(page.get_by_text("The feedback cannot be empty")).to_be_visible()
    page.get_by_label("What should the next draft do better?").fill("Name a town.")
    page.get_by_role("button", name="Reject", exact=True).click()
    expect(page.get_by_text("The decision counts.")).to_be_visible()
    expect(page.get_by_role("heading", name="Requesting human feedback on draft 2 of 3")).to_be_visible()
    assert model.asked("Name a town.")

    shown = page.locator(".draft .text").inner_text()
    page.get_by_role("button", name="Approve").click()
    page.get_by_role("dialog").get_by_role("button", name="Approve").click()
    expect(page.locator(".status")).to_have_text("Completed")
    expect(page.locator(".draft")).to_be_hidden()
    published = (tmp_path / "published" / f"{instance}.md").read_text(encoding="utf-8")
    assert " ".join(shown.split()) in " ".join(published.split())


def test_a_decision_on_an_older_draft_is_told_that_it_does_not_count(
    page: Page,
    dashboard: str,
    hub: str,
    sample: Callable[[str], Sample],
    client: TaskHubGrpcClient,
    tmp_path: Path,
) -> None:
    writer = sample("07")
    writer.start_worker(CONTENT_DIRECTORY=str(tmp_path))
    instance = started(writer, "paper maps")
    page.goto(orchestration_url(dashboard, hub, instance))
    page.get_by_role("button", name="Reject with feedback").click()
    field = page.get_by_label("What should the next draft do better?")
    field.fill("Longer, ")
    client.raise_orchestration_event(instance, "HumanApproval", data={"approved": False, "feedback": "Shorter."})
    expect(page.get_by_role("heading", name="on draft 2 of 3")).to_be_visible()  # another reviewer was faster
    expect(field).to_have_value("Longer, ")
    field.press_sequentially("please.")
    page.get_by_role("button", name="Reject", exact=True).click()
    expect(page.get_by_text("The decision does not count. It is for draft 1")).to_be_visible()
    expect(page.get_by_text("A decision was ignored.")).to_be_visible()


def test_a_conversation_is_a_chat_that_grows(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample]
) -> None:
    joker = sample("01")
    joker.start_worker()
    key = re.search(r"Conversation (\w+)", joker.run_client().output)
    assert key
    page.goto(f"{dashboard}/?hub={hub}")  # there are no orchestrations: it shows the sessions first
    expect(page.get_by_role("row", name="Joker")).to_contain_text(key[1])
    page.get_by_role("link", name="Joker").click()
    expect(page.locator(".entry")).to_have_count(4)
    expect(page.locator(".entry.request").first).to_contain_text("Tell me a joke about a pirate.")
    expect(page.locator(".entry.response").first).to_contain_text("tokens")
    expect(page.get_by_text("2 turns")).to_be_visible()
    joker.run_client("--session", key[1], "What did I ask first?")
    expect(page.locator(".entry.response").last).to_contain_text("a joke about a pirate", timeout=LIVE)
    expect(page.locator(".entry")).to_have_count(6)
    page.get_by_text("Raw state").click()
    expect(card(page, "State")).to_contain_text('"schemaVersion"')


@pytest.mark.skipif(not redis_program(), reason="needs a real redis-server")
def test_tool_calls_are_shown_with_arguments_and_results(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample], start: Start
) -> None:
    redis = start(sys.executable, "-m", "local_services.redis_server", "--port", "0")
    planner = sample("03")
    planner.settings["REDIS_CONNECTION_STRING"] = redis.wait_for(r"redis ready: (\S+)")[1]
    planner.start_worker()
    planner.run_client("Plan two days in Tokyo for me.")
    page.goto(f"{dashboard}/?hub={hub}")
    page.get_by_role("link", name="TravelPlanner").click()
    call = page.locator(".call", has_text="get_weather_forecast")
    expect(call).to_contain_text("Tokyo")
    expect(call).to_contain_text("22 °C")
    expect(page.locator(".call", has_text="get_local_events")).to_contain_text("night market")


def test_an_agents_error_is_shown(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample], model: ScriptedModel
) -> None:
    experts = sample("05")
    experts.start_worker()
    model.fail(400, "no such parameter")
    instance = experts.run_client().output.split()[1]
    page.goto(orchestration_url(dashboard, hub, instance))
    expect(page.locator(".status")).to_have_text("Failed")
    expect(page.locator(".bar.agent.failed")).to_have_count(2)
    expect(page.locator(".failure")).to_contain_text("no such parameter")
    page.get_by_role("link", name="ChemistAgent").click()
    expect(page.locator(".bubble.error")).to_contain_text("no such parameter")


# Hostile, huge and broken --------------------------------------------------------------------------------------------


def test_what_a_payload_holds_stays_text(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample], model: ScriptedModel
) -> None:
    experts = sample("05")
    experts.start_worker()
    model.say(HOSTILE)
    instance = experts.run_client(HOSTILE).output.split()[1]
    model.heal()
    model.fail(503, "<script>alert(1)</script>")  # the reason why an expert waits stands in the custom status
    experts.run_client("--no-wait", "waits")
    page.goto(f"{dashboard}/?hub={hub}")
    expect(page.locator("td.col-custom-status", has_text="<script>")).to_have_count(1)
    page.goto(orchestration_url(dashboard, hub, instance))
    expect(card(page, "Custom status")).to_contain_text("<script>")
    expect(card(page, "Input")).to_contain_text(HOSTILE.split("\n")[0])
    expect(card(page, "Output")).to_contain_text("<script>")
    expect(page.locator(".diagram svg")).to_contain_text("""<img src=x onerror="alert('x')"><""")
    page.get_by_text("History").click()
    page.locator(".event", has_text="Execution started").click()
    expect(page.locator(".history")).to_contain_text("<script>")
    page.get_by_role("link", name="PhysicistAgent").click()
    expect(page.locator(".entry.request .bubble")).to_have_text(HOSTILE)
    expect(page.locator(".entry.response .bubble")).to_contain_text("<script>")
    assert page.locator("main img, main script").count() == 0


def test_payloads_that_are_huge_or_no_json(page: Page, dashboard: str, hub: str, scheduler: str) -> None:
    class AsItIs(JsonDataConverter):
        def serialize(self, value: Any) -> str | None:
            return value

    long = "word " * 200_000
    with scheduler_client(scheduler, hub, data_converter=AsItIs()) as client:
        broken = client.schedule_new_orchestration("nobody", input='{"not": json')
        huge = client.schedule_new_orchestration("nobody", input=json.dumps(long))
    page.goto(orchestration_url(dashboard, hub, broken))
    expect(card(page, "Input")).to_contain_text('{"not": json')
    page.goto(orchestration_url(dashboard, hub, huge))
    expect(card(page, "Input")).to_contain_text("10,000 of 1,000,000 characters")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy input").click()
    expect(page.get_by_text("Copied")).to_be_visible()
    eventually(lambda: page.evaluate("navigator.clipboard.readText()") == long, "the whole text on the clipboard")
    page.get_by_role("button", name="Show all").click()
    text = card(page, "Input").locator(".text")
    eventually(lambda: len(text.text_content() or "") == len(long), "the whole text")


def test_a_scheduler_that_is_away_is_told_and_the_page_goes_on(page: Page, start: Start) -> None:
    def start_scheduler() -> Process:
        process = start(sys.executable, "-m", "local_services.scheduler", "--port", str(port))
        process.wait_for("ready")
        return process

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    dashboard = address(start_dashboard(start, ENDPOINT=endpoint, TASKHUB="mine"))
    page.goto(dashboard)
    expect(page.get_by_role("alert")).to_contain_text(f"The scheduler at {endpoint} does not answer.")
    first = start_scheduler()
    expect(page.get_by_text("Task hub 'mine' has no orchestrations yet.")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    with scheduler_client(endpoint, "mine") as client:
        client.schedule_new_orchestration("somebody")
    expect(page.get_by_role("link", name="somebody")).to_be_visible()
    first.kill()
    expect(page.get_by_role("alert")).to_be_visible()
    expect(page.get_by_role("link", name="somebody")).to_be_visible()  # the last known data stays
    start_scheduler()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_instance_that_is_purged_while_it_is_open(
    page: Page, dashboard: str, hub: str, client: TaskHubGrpcClient, worker: None
) -> None:
    instance = client.schedule_new_orchestration("patient", input="what it was about")
    page.goto(orchestration_url(dashboard, hub, instance))
    client.terminate_orchestration(instance)
    expect(page.locator(".status")).to_have_text("Terminated")
    client.purge_orchestration(instance)
    expect(page.get_by_text("it may have been purged. This page shows its last known state.")).to_be_visible()
    expect(card(page, "Input")).to_contain_text("what it was about")
    page.goto(orchestration_url(dashboard, hub, "never-was"))
    expect(page.get_by_text("There is no such orchestration")).to_be_visible()
    page.goto(f"{dashboard}/session?hub={hub}&id=@dafx-joker@never-was")
    expect(page.get_by_text("There is no such session")).to_be_visible()


# Lists --------------------------------------------------------------------------------------------------------------


def test_a_change_shows_at_once_and_leaves_scroll_selection_and_typed_text(
    page: Page, dashboard: str, hub: str, client: TaskHubGrpcClient, worker: None
) -> None:
    for number in range(30):
        client.schedule_new_orchestration("patient", instance_id=f"number-{number}")
    page.set_viewport_size({"width": 1280, "height": 500})
    page.goto(f"{dashboard}/?hub={hub}")
    expect(page.locator("tbody tr")).to_have_count(25)
    page.get_by_role("searchbox").fill("pat")
    page.locator("tbody tr").nth(10).scroll_into_view_if_needed()
    page.locator("td.col-name a").nth(12).evaluate(
        "link => { getSelection().selectAllChildren(link); scrollTo(0, 200) }"
    )
    client.schedule_new_orchestration("patient", instance_id="newest")
    expect(page.locator("tbody tr").first).to_contain_text("newest", timeout=LIVE)
    expect(page.get_by_role("tab", name="Orchestrations 31")).to_be_visible()
    assert page.evaluate("getSelection().toString()") == "patient"
    assert page.evaluate("scrollY") >= 200
    expect(page.get_by_role("searchbox")).to_have_value("pat")
    client.terminate_orchestration("newest")
    expect(page.locator("tbody tr").first).to_contain_text("Terminated", timeout=LIVE)


def test_filters_and_pages(page: Page, dashboard: str, hub: str, client: TaskHubGrpcClient, worker: None) -> None:
    for number in range(60):
        client.schedule_new_orchestration(
            "patient", instance_id=f"number-{number:02}-{'odd' if number % 2 else 'even'}"
        )
    client.terminate_orchestration("number-07-odd")
    page.goto(f"{dashboard}/?hub={hub}")
    rows = page.locator("tbody tr")
    expect(rows.first).to_contain_text("number-59")  # newest first
    expect(page.get_by_text("1–25 of 60")).to_be_visible()
    page.get_by_role("button", name="3", exact=True).click()
    expect(page.get_by_text("51–60 of 60")).to_be_visible()
    expect(rows.last).to_contain_text("number-00")
    page.get_by_role("searchbox").fill("ODD")
    expect(page.get_by_text("1–25 of 30")).to_be_visible()
    page.get_by_role("button", name="Terminated 1").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("number-07")
    page.reload()  # the address contains the choice
    expect(rows).to_have_count(1)
    page.get_by_role("searchbox").fill("even")
    expect(page.get_by_text("Nothing matches the filter.")).to_be_visible()


def test_another_task_hub_by_name(page: Page, start: Start, scheduler: str, hub: str) -> None:
    dashboard = address(start_dashboard(start, ENDPOINT=scheduler, TASKHUB=hub))
    with scheduler_client(scheduler, f"{hub}-other") as client:
        client.schedule_new_orchestration("elsewhere")
    page.goto(dashboard)
    expect(page.get_by_text(f"Task hub '{hub}' has no orchestrations yet.")).to_be_visible()
    page.get_by_label("Task hub").fill(f"{hub}-other")
    page.get_by_label("Task hub").press("Enter")
    expect(page.get_by_role("link", name="elsewhere")).to_be_visible()
    assert f"hub={hub}-other" in page.url


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_used_by_keyboard(
    page: Page, dashboard: str, hub: str, client: TaskHubGrpcClient, width: int, scheme: Any
) -> None:
    client.schedule_new_orchestration("a_rather_long_name_of_an_orchestration", instance_id="x" * 100, input="y" * 500)
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{dashboard}/?hub={hub}")
    link = page.get_by_role("link", name="a_rather_long")
    expect(link).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 22, 29)") == (scheme == "dark")
    for _ in range(30):
        page.keyboard.press("Tab")
        if "a_rather_long" in page.evaluate("document.activeElement.textContent"):
            break
    page.keyboard.press("Enter")
    expect(card(page, "Input")).to_contain_text("y" * 500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_colors_that_are_chosen_stay(page: Page, dashboard: str, hub: str) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(f"{dashboard}/?hub={hub}")
    page.get_by_role("button", name="Colors: auto").click()
    page.get_by_role("button", name="Colors: light").click()
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))
    page.reload()
    expect(page.get_by_role("button", name="Colors: dark")).to_be_visible()
    expect(page.locator("body")).to_have_class(re.compile("body--dark"))


# Actions ------------------------------------------------------------------------------------------------------------


def test_suspend_resume_terminate_restart_purge(
    page: Page, dashboard: str, hub: str, sample: Callable[[str], Sample], tmp_path: Path
) -> None:
    def act(name: str, confirm: bool = True) -> None:
        page.locator(".actions").get_by_role("button", name=name).click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name=name if confirm else "Cancel", exact=True).click()
        expect(dialog).to_be_hidden()

    writer = sample("07")
    writer.start_worker(CONTENT_DIRECTORY=str(tmp_path))
    page.goto(orchestration_url(dashboard, hub, started(writer, "paper maps")))
    status = page.locator(".status")
    expect(page.locator(".draft")).to_be_visible()
    act("Suspend")
    expect(status).to_have_text("Suspended")
    act("Resume")
    expect(status).to_have_text("Running")
    act("Terminate", confirm=False)
    expect(status).to_have_text("Running")
    act("Terminate")
    expect(status).to_have_text("Terminated")
    expect(page.locator(".draft")).to_be_hidden()
    first = page.url
    act("Restart")
    expect(status).to_have_text("Running")
    assert page.url != first
    page.goto(first)
    act("Purge")
    expect(page.get_by_text("it may have been purged")).to_be_visible()


def test_an_events_payload_is_checked_before_it_is_sent(
    page: Page,
    dashboard: str,
    hub: str,
    sample: Callable[[str], Sample],
    client: TaskHubGrpcClient,
    tmp_path: Path,
) -> None:
    writer = sample("07")
    writer.start_worker(CONTENT_DIRECTORY=str(tmp_path))
    instance = started(writer, "paper maps")
    page.goto(orchestration_url(dashboard, hub, instance))
    expect(page.locator(".draft")).to_be_visible()
    page.get_by_role("button", name="Raise event").click()
    send = page.get_by_role("button", name="Send")
    send.click()
    expect(page.get_by_text("The event needs a name.")).to_be_visible()
    page.get_by_label("Name").fill("HumanApproval")
    payload = page.get_by_label("Payload")
    payload.fill('{"approved": tru}')
    send.click()
    expect(page.get_by_text("Not JSON").first).to_be_visible()
    assert "EventRaised" not in str(client.get_orchestration_history(instance))
    payload.fill('{"approved": true, "feedback": ""}')
    send.click()
    expect(page.locator(".status")).to_have_text("Completed")
    expect(page.locator(".bar.event")).to_have_count(1)


# As a service --------------------------------------------------------------------------------------------------------


def request(url: str, **headers: str) -> int:
    """The status of the answer to a request with these headers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    path = f"{parts.path or '/'}?{parts.query}"
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with connection.getresponse() as response:
        connection.close()
        return response.status


def test_other_web_pages_are_kept_out(dashboard: str) -> None:
    port = dashboard.rpartition(":")[2]
    assert request(dashboard) == 200
    assert request(f"http://localhost:{port}", Origin=f"http://localhost:{port}") == 200
    assert request(dashboard, Host=f"evil.example:{port}") == 403  # DNS rebinding
    assert request(dashboard, Origin="http://evil.example") == 403
    assert request(dashboard, Origin="null") == 403
    socket_url = f"{dashboard}/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade["Sec_WebSocket_Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    assert request(socket_url, Origin="http://evil.example", **upgrade) == 403
    assert request(socket_url, Origin=dashboard, **upgrade) == 101


def test_a_page_from_elsewhere_cannot_connect(page: Page, dashboard: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>another page</p>")
    other = start(sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "-d", tmp_path, "0")
    port = other.wait_for(r"port (\d+)")[1]
    page.goto(f"http://127.0.0.1:{port}")
    outcome = page.evaluate(
        """url => new Promise(done => {
            const socket = new WebSocket(url);
            socket.onopen = () => done("open");
            socket.onerror = () => done("refused");
        })""",
        f"{dashboard.replace('http', 'ws')}/_nicegui_ws/socket.io/?EIO=4&transport=websocket",
    )
    assert outcome == "refused"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_listens_here_alone_and_stops(start: Start, scheduler: str) -> None:
    for order in (signal.SIGINT, signal.SIGTERM):
        process = start_dashboard(start, ENDPOINT=scheduler)
        port = int(address(process).rpartition(":")[2])
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        assert re.findall(rf"(\S+):{port:04X} \S+ 0A", listening) == ["0100007F"]
        process.signal(order)
        assert process.wait() == 0
        assert process.errors == "", process.errors


def test_a_port_in_use_is_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start_dashboard(start, "--port", str(taken.getsockname()[1]))
        assert process.wait() == 2
    assert "--port" in process.errors
    assert process.errors.count("\n") == 1


def test_it_ends_with_its_supervisor(start: Start) -> None:
    process = start_dashboard(start, "--port", "0", "--supervised")
    address(process)
    assert process.popen.stdin
    process.popen.stdin.close()
    assert process.wait() == 0
