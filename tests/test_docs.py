"""The Markdown files are true: every command runs, every link and message exists, every diagram is valid.

Each sample's README is followed in a copy of its folder alone, with a Python that has what requirements.txt installs
and nothing else. A command of a kind that is not listed below fails the first test: add the kind, and how it is run.
"""

import ast
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import nicegui
import pytest
import yaml
from collection import MARKDOWN, PUBLIC, SAMPLES, closure, requirements
from conftest import ROOT, Process, Sample, Start, clean_environment, eventually
from playwright.sync_api import sync_playwright
from raw_scheduler import RawScheduler
from test_dashboard import CHROMIUM, CHROMIUM_OPTIONS

pytestmark = pytest.mark.xdist_group("docs")  # its services are started once

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "text", "mermaid", "python", "powershell"}
# Commands within the text.
PROGRAMS = ("python ", "python3 ", "pip ", "docker ", "az ", "azd ", "cp ", "kill ", "sqlite3 ", ".venv/")

# The kinds of commands. The first are run when a README is followed, the others by the tests in their comments.
KINDS = {
    "program": r"python (\w+/)?(client|sample|review|approve)\.py\b.*",
    "worker": r"([A-Z_]+=\S+ )?python (\w+/)?worker\.py",
    "kill": r"kill -9 PROCESS_ID",
    "redis": r"python -c .*redis\.Redis\(.*",
    "folder": r"cd \S+",
    "install": r"python3 -m venv \.venv|source \.venv/bin/activate|pip install -r requirements\.txt",
    "sample": r"python3 run\.py (all|\d\d)",  # test_every_sample_by_run_py_and_what_continues_it
    "sample and arguments": r"python3 run\.py \d\d .+",  # the same test
    "services": r"(OFFLINE_MODEL_\w+=\S+ )?python3 run\.py up( --memory)?",  # test_the_services
    "reset": r"python3 run\.py reset",  # test_run.py
    "files": r"python3 run\.py test\b.*|cp (-r )?\S+ \S+",  # test_the_files_in_commands_exist
    "its own test": r"pip install pytest|python -m pytest",  # test_04_chaining.py
    "dashboard": r"\.venv/bin/python -m local_services\.dashboard( --port \d+)?",  # test_dashboard.py
    "scheduler": r"python -m local_services\.scheduler( --\w+ \S+)*",  # test_the_scheduler_alone
    "sqlite": r"sqlite3 -readonly \.state/scheduler\.db .+",  # test_the_scheduler_alone
    "catalog": r"python3 run\.py",  # test_run.py
    "prove": r"python3 run\.py prove( .+)?",  # test_prove.py
    "bench": r"python3 run\.py bench( .+)?",  # test_benchmarks.py
    # What needs an account or Docker is not run; test_blocks_are_well_formed reads it as bash does.
    "docker": r"docker (compose|run|kill|stop)\b.*",
    "azure": r"azd? .+",
}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))

by_file = pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: str(file.relative_to(ROOT)))


def blocks_in(file: Path, language: str) -> list[str]:
    return [block for kind, block in BLOCK.findall(file.read_text(encoding="utf-8")) if kind == language]


def needs_what_is_not_here(block: str) -> bool:
    """Whether a block of commands is for an Azure account or for Docker, as a whole."""
    return bool(re.search(r"^docker |\bazd? \w+|azd -C |YOUR-|\$SAMPLE", block, re.MULTILINE))


def commands_in(file: Path) -> Iterator[str]:
    """The commands in blocks for a shell and in the text, in their order, without comments."""
    either = re.compile(BLOCK.pattern + r"|`([^`]+)`", BLOCK.flags)
    for language, block, code in either.findall(file.read_text(encoding="utf-8")):
        if language == "bash" and not needs_what_is_not_here(block):
            for line in block.replace("\\\n", " ").splitlines():
                yield from filter(None, re.sub(r"(^|\s+)#.*", "", line).split(" && "))
        elif code.startswith(PROGRAMS):
            yield " ".join(code.split())


def kind_of(command: str) -> str | None:
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, command)), None)


def all_of(kind: str) -> list[str]:
    """The commands of this kind in all files, each once."""
    return sorted({command for file in MARKDOWN for command in commands_in(file) if kind_of(command) == kind})


@by_file
def test_it_is_known_how_each_command_is_run(file: Path) -> None:
    assert {language for language, _ in BLOCK.findall(file.read_text(encoding="utf-8"))} <= LANGUAGES
    assert [command for command in commands_in(file) if not kind_of(command)] == []


@by_file
def test_blocks_are_well_formed(file: Path) -> None:
    for block in blocks_in(file, "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for service in re.findall(r"docker compose stop (\w+)|--scale (\w+)=|--profile (\w+)", block):
            assert "".join(service) in COMPOSE["services"], block


@by_file
def test_ports_are_published_on_this_machine_only(file: Path) -> None:
    for command in re.findall(r"docker run [^`\n]*", file.read_text(encoding="utf-8")):
        assert all(port.startswith("127.0.0.1:") for port in re.findall(r"-p (\S+)", command)), command


# The samples' own -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def python_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Gives a Python that has what the sample's requirements.txt brings, as links to what is installed here."""
    made: dict[str, Path] = {}

    def make(folder: Path) -> Path:
        wanted = (folder / "requirements.txt").read_text()
        if wanted not in made:
            venv = tmp_path_factory.mktemp("venv")
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
            (packages,) = venv.glob("lib/python*/site-packages")
            for distribution in closure(requirements(folder)).values():
                for file in distribution.files or ():
                    if ".." not in file.parts:
                        (packages / file).parent.mkdir(parents=True, exist_ok=True)
                        (packages / file).symlink_to(Path(str(file.locate())).resolve())
            made[wanted] = venv / "bin" / "python"
        return made[wanted]

    return make


FOUND_IN = {  # where a reader finds what stands in capitals; the latest counts
    "KEY": r"(?:--session|Conversation) (\w+)",
    "ID": r"--cursor (\S+)|Orchestration: +([\w-]+)|^([0-9a-f]{32}|[0-9a-f]{12}-[0-9a-f]{32})(?:$|  draft)",
}


class Reader:
    """Types a README's commands one after the other, and fills in what an earlier one has printed."""

    def __init__(self, folder: Path, python: Path, start: Start, environment: dict[str, str]) -> None:
        self.folder = folder
        self.python = python
        self.environment = environment
        self.output = ""
        self.worker: Process | None = None
        self.left_waiting: list[Process] = []
        self._start = start

    def follow(self, commands: Iterable[str]) -> None:
        """Type them all."""
        for command in commands:
            self.type(command)
        for process in self.left_waiting:
            assert process.wait() == 0, process.errors
        assert self.worker
        assert self.worker.errors == ""

    def type(self, command: str) -> None:
        """Do what the command says, as far as it is for this folder."""
        if re.match(r"python review\.py \w+ ID", command):
            self.output += eventually(self._drafts_to_review, "a draft to review")
            if self.worker and self.worker.popen.poll() is not None:
                command += " --timeout 1"  # nobody will confirm the decision
        words = shlex.split(re.sub(r"\b(KEY|ID)\b", lambda match: self._found(match[1]), command))
        kind = kind_of(command)
        if kind == "worker":
            self._start_worker(words[-1], dict(word.split("=", 1) for word in words[:-2]))
        elif kind == "kill":
            assert self.worker
            self.worker.kill()
        elif kind == "program":
            self._run(words)
        elif kind == "redis":
            port = self.environment["REDIS_CONNECTION_STRING"].rpartition(":")[2]
            self._run([word.replace("redis.Redis(", f"redis.Redis(port={port}, ") for word in words])
        elif kind == "folder":
            assert words[1] == "../my-product" or (ROOT / words[1]).is_dir()

    def _found(self, placeholder: str) -> str:
        found = re.findall(FOUND_IN[placeholder], self.output, re.MULTILINE)
        assert found, f"nothing has printed {placeholder}"
        return "".join(found[-1])

    def _start_worker(self, program: str, settings: dict[str, str]) -> None:
        if self.worker and self.worker.popen.poll() is None:
            if not settings:
                return
            self.worker.stop()
        self.worker = self._start(self.python, program, cwd=self.folder, env=self.environment | settings)
        self.worker.wait_for("Worker ready")

    def _python(self, words: list[str], stdin: str = "") -> Process:
        process = self._start(self.python, *words[1:], cwd=self.folder, env=self.environment)
        assert process.popen.stdin
        process.popen.stdin.write(stdin)
        process.popen.stdin.close()
        return process

    def _run(self, words: list[str]) -> None:
        stdin = "Tell me a joke." if "--chat" in words else ""
        if "<" in words:
            words, stdin = words[: words.index("<")], (self.folder / words[-1]).read_text()
        process = self._python(words, stdin)
        eventually(lambda: process.popen.poll() is not None or "waits for a decision: " in process.output, str(words))
        if process.popen.poll() is None:
            self.left_waiting.append(process)  # for a decision, which a later command makes
            return
        code = process.wait()
        self.output += process.output
        if words[1] == "review.py" and self.worker and self.worker.popen.poll() is not None:
            assert (code, "no worker" in process.errors) == (1, True), process.errors
        else:
            assert (code, "Traceback" in process.errors) == (0, False), (words, process.errors)

    def _drafts_to_review(self) -> str:
        listing = self._python(["python", "review.py", "list"])
        assert listing.wait() == 0, listing.errors
        return listing.output if "  draft " in listing.output else ""


@pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.name[:2])
def test_a_sample_s_readme_in_a_copy_of_its_folder_alone(
    folder: Path,
    python_for: Callable[[Path], Path],
    sample: Callable[[str], Sample],
    start: Start,
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("__pycache__", ".env")))
    (copy / "FILE.eml").write_text("From: Ada <ada@example.com>\nSubject: Report\n\nCould you send me the report?")
    settings = {}
    if "redis" in {requirement.name for requirement in requirements(folder)}:
        redis = start(sys.executable, "-m", "local_services.redis_server", "--port", "0")
        settings["REDIS_CONNECTION_STRING"] = redis.wait_for(r"redis ready: (\S+)")[1]
    environment = sample(folder.name[:2]).environment(**settings)

    reader = Reader(copy, python_for(folder), start, environment)
    reader.follow(commands_in(folder / "README.md"))


def test_the_top_readme(sample: Callable[[str], Sample], start: Start) -> None:
    # What names no folder is for a folder copied out, as above.
    commands = [command for command in commands_in(ROOT / "README.md") if "python 0" in command]
    assert [kind_of(command) for command in commands] == ["worker", "program"]
    Reader(ROOT, Path(sys.executable), start, sample("01").environment()).follow(commands)


# run.py -----------------------------------------------------------------------------------------------------------

# run.py hands over to this once everything is installed, which test_run.py sees to.
RUN_PY = (sys.executable, "-m", "runner")


@pytest.fixture
def run_py(start: Start, tmp_path: Path) -> Callable[..., Process]:
    """Starts run.py; what it has written goes into a folder of the test."""
    environment = clean_environment(EMAIL_DIRECTORY=str(tmp_path), CONTENT_DIRECTORY=str(tmp_path))
    return lambda *arguments, **settings: start(*RUN_PY, *arguments, env=environment | settings)


def test_every_sample_by_run_py_and_what_continues_it(run_py: Callable[..., Process], tmp_path: Path) -> None:
    state = {"STATE_DIRECTORY": str(tmp_path / "state")}
    everything = run_py("all", **state)
    assert everything.wait(170) == 0, everything.output + everything.errors
    for command in all_of("sample"):
        number = command.split()[-1]
        assert number == "all" or re.search(rf"^{number}_\w+ +ok ", everything.output, re.MULTILINE)
    first = {name: "".join(re.findall(pattern, everything.output, re.M)[0]) for name, pattern in FOUND_IN.items()}
    assert {word for command in all_of("sample and arguments") for word in command.split()} >= {"01", "04", *first}
    for command in all_of("sample and arguments"):  # the first key is 01's, the first id 04's
        process = run_py(*(first.get(word, word) for word in shlex.split(command)[2:]), **state)
        assert process.popen.stdin
        process.popen.stdin.close()
        assert process.wait() == 0, process.errors
        assert process.output


def alike(output: str) -> list[str]:
    """The lines without what differs in each run: keys, ports, process numbers, the folder of the state."""
    output = re.sub(r"\b[0-9a-f]{32}\b", "KEY", output)
    output = re.sub(r":\d{4,5}\b", ":PORT", output)
    return re.sub(r"process \d+|state in [^)]+", "…", output).splitlines()


def test_the_top_readme_shows_what_is_printed(run_py: Callable[..., Process]) -> None:
    (shown,) = blocks_in(ROOT / "README.md", "text")
    process = run_py("01")
    assert process.wait() == 0, process.errors
    on_stderr = [line for line in alike(shown) if line.startswith(("Started ", "worker │ "))]
    assert len(on_stderr) == 3
    assert alike(process.errors) == on_stderr
    assert alike(process.output) == [line for line in alike(shown) if line not in on_stderr]


def test_the_services(run_py: Callable[..., Process], start: Start) -> None:
    running = []
    for command in all_of("services"):
        settings = dict(word.split("=") for word in command.split() if "=" in word)
        ports = [word for name in ("scheduler", "model", "redis", "dashboard") for word in (f"--{name}-port", "0")]
        options = command.partition("run.py up")[2].split()
        running.append(run_py("up", *ports, *options, **settings))
        for name in settings:  # it is read: nonsense is refused
            model = start(sys.executable, "-m", "local_services.offline_model", env=clean_environment(**{name: "soon"}))
            assert model.wait() == 2
    for services in running:
        services.wait_for("Ctrl-C stops the services")


def test_the_scheduler_alone(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    (command,) = all_of("scheduler")
    scheduler = start(sys.executable, *command.replace("8080", "0").replace("FILE", str(file)).split()[1:])
    with RawScheduler(scheduler.wait_for(r"scheduler ready: (\S+)")[1], "hub") as raw:
        raw.start("any")
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        for command in all_of("sqlite"):
            database.execute(shlex.split(command)[-1])
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    page = (ROOT / "docs" / "local-scheduler.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| ", page.partition("| table |")[2], re.MULTILINE)) == tables


def test_the_files_in_commands_exist() -> None:
    for command in all_of("files"):
        for file in re.findall(r"tests/\S+|(?:cp|-r) (\w\S+|\.\S+)", command):
            assert not file or (ROOT / file).exists(), command


# Messages and names in the code ------------------------------------------------------------------------------------

CODE = ("runner", "local_services", "[0-9][0-9]_*")
OF_OTHERS = {"error: externally-managed-environment", "ModuleNotFoundError: No module named 'agent_framework'"}


def texts_in(file: Path) -> Iterator[str]:
    """The strings of a program, with "…" in place of a value, or with what is printed if there is none."""

    def text_of(part: ast.expr) -> str:
        if isinstance(part, ast.FormattedValue):
            part = part.value.values[-1] if isinstance(part.value, ast.BoolOp) else part
        return str(part.value) if isinstance(part, ast.Constant) else "…"

    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(text_of, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_messages_in_troubleshooting_are_printed_by_the_code() -> None:
    programs = [ROOT / "run.py", *(file for folder in CODE for file in ROOT.glob(f"{folder}/**/*.py"))]
    texts = {text for file in programs for text in texts_in(file)}
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \| ", page, re.MULTILINE)
    messages = {message for cell in cells for message in re.findall(r"`([^`]+)`", cell)}
    assert len(messages) > 30
    assert messages >= OF_OTHERS
    unknown = set()
    for message in messages - OF_OTHERS:
        parts = [part.strip() for part in re.split(r"…|(?<=\()\d+(?=\))", message) if part.strip()]
        assert sum(map(len, parts)) > 10, message
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        if not any(pattern.search(text) for text in texts):
            unknown.add(message)
    assert not unknown


def test_the_inner_parts_that_hosting_uses_are_listed() -> None:
    page = (ROOT / "docs" / "from-laptop-to-azure.md").read_text(encoding="utf-8")
    section = page.partition("\n## Before you go to production\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if re.match(r"\| .+\.py \|$", line)]
    assert len(rows) > 5
    listed = set()
    for part, _, files in rows:
        code = [file.read_text() for name in files.split(", ") for file in list(ROOT.glob(f"0*/hosting/{name}"))[:1]]
        assert len(code) == len(files.split(", ")), files
        for name in re.findall(r"`([^`]+)`", part):
            listed.add(name)
            assert any(all(word in text for word in name.split(".")) for text in code), name

    for file in ROOT.glob("[0-9][0-9]_*/hosting/*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "agent_framework_durabletask":
                assert {alias.name for alias in node.names} <= PUBLIC | listed, file
            if isinstance(node, ast.ImportFrom):
                assert "._" not in (node.module or ""), file  # no private module


# Links and diagrams -----------------------------------------------------------------------------------------------


def prose(file: Path) -> str:
    """The file without blocks of code."""
    return BLOCK.sub("", file.read_text(encoding="utf-8"))


def anchors(file: Path) -> list[str]:
    """The names by which its headings can be linked to."""
    headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


@by_file
def test_links_lead_to_files_and_headings_that_exist(file: Path) -> None:
    text = re.sub(r"`[^`]+`", "", prose(file))
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        path, _, anchor = "".join(link).partition("#")
        if not re.match(r"https?://|mailto:", path):
            target = file.parent / unquote(path) if path else file
            assert target.exists(), "".join(link)
            assert not anchor or anchor in anchors(target), "".join(link)


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium or Chrome on the PATH")
def test_diagrams_are_valid() -> None:
    diagrams = [(file, text) for file in MARKDOWN for text in blocks_in(file, "mermaid")]
    assert len(diagrams) >= len(SAMPLES)
    mermaid = Path(nicegui.__file__).parent / "elements" / "mermaid" / "dist"  # what the dashboard draws with
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        page = browser.new_page()
        page.route("**/*", lambda route: route.fulfill(path=mermaid / Path(route.request.url).name))
        page.route("http://mermaid.test/", lambda route: route.fulfill(body="", content_type="text/html"))
        page.goto("http://mermaid.test/")
        page.evaluate("async () => window.parse = (await import('/index.js')).mermaid.parse")
        assert page.evaluate("parse('sequenceDiagram\\n A->>').catch(error => 'refused')") == "refused"
        for file, text in diagrams:
            assert page.evaluate("text => parse(text)", text)["diagramType"] == "sequence", file
        browser.close()
