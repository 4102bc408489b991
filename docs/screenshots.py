"""Takes the screenshots of the dashboard in docs/images, from real runs of the samples.

Run it with the Python in .venv, after `python3 run.py test` has installed what it needs. Chromium or Chrome must be on
the PATH, and port 8082 must be free.
"""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from runner.addresses import DASHBOARD, MODEL, OFFLINE_MODEL, REDIS, SCHEDULER  # noqa: E402
from runner.supervisor import Supervisor  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SAMPLES = {path.name[:2]: path for path in ROOT.glob("[0-9][0-9]_*")}
HUB = "samples"


def main() -> None:
    """Run samples, and take a screenshot of each on the dashboard."""
    with Supervisor() as supervisor, tempfile.TemporaryDirectory() as effects:
        services = supervisor.start_services({service: ["--port", "0"] for service in (SCHEDULER, MODEL, REDIS)})
        env = os.environ | {service.variable: address for service, address in services.items()} | OFFLINE_MODEL
        env |= {"TASKHUB": HUB, "CONTENT_DIRECTORY": effects, "EMAIL_DIRECTORY": effects}
        supervisor.start_service(DASHBOARD, env=env)
        for number in ("01", "03", "05", "06", "07"):
            supervisor.start_worker(SAMPLES[number], env)
        for number in ("06", "03", "01", "05"):
            run_client(number, env)
        run_client("07", env, "--no-wait", "paper maps")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
            page = browser.new_page(viewport={"width": 1120, "height": 700})
            take_pictures(page, f"http://127.0.0.1:{DASHBOARD.port}")
            browser.close()


def run_client(number: str, env: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "client.py", *arguments]
    subprocess.run(command, cwd=SAMPLES[number], env=env, stdin=subprocess.DEVNULL, check=True, capture_output=True)


def take_pictures(page: Page, dashboard: str) -> None:
    """Open the pages one after the other, as a user would."""
    home = f"{dashboard}/?hub={HUB}"
    page.goto(home)
    page.get_by_text("Requesting human feedback").wait_for()
    save(page, "overview", 430)

    page.get_by_role("link", name="content_generation_hitl_orchestration").first.click()
    page.locator(".diagram svg").wait_for()
    save(page, "review", 820)

    page.goto(home)
    page.get_by_role("link", name="multi_agent_concurrent_orchestration").click()
    page.locator(".diagram svg").wait_for()
    save(page, "orchestration", 760)

    page.goto(f"{home}&view=sessions")
    page.get_by_role("link", name="TravelPlanner").first.click()
    page.locator(".call").first.wait_for()
    save(page, "tool-calls", 980)

    page.goto(f"{home}&view=sessions")
    page.get_by_role("link", name="Joker").click()
    page.locator(".entry").nth(3).wait_for()
    save(page, "conversation", 560)


def save(page: Page, name: str, height: int) -> None:
    """Save the top of the page as WebP, which is a third of the size of a PNG."""
    page.set_viewport_size({"width": 1120, "height": height})
    page.wait_for_timeout(1500)  # until notices disappear and times are older than "just now"
    session = page.context.new_cdp_session(page)
    picture = session.send("Page.captureScreenshot", {"format": "webp", "quality": 82})
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / f"{name}.webp").write_bytes(base64.b64decode(picture["data"]))
    print(f"docs/images/{name}.webp", flush=True)


if __name__ == "__main__":
    main()
