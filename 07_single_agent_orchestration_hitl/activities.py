"""The effects. An activity runs at least once: a worker may die after the effect, and before it could report it."""

import re
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from hosting.program import setting
from hosting.terminal import command

from durabletask.task import ActivityContext
from models import Draft


def notify_user_for_approval(context: ActivityContext, which: str) -> None:
    """Say that a draft waits for a decision. In production: a mail, or a message in a chat, with a link to it."""
    print(f"A decision is needed on {which}: {command('review.py')} show {context.orchestration_id}", flush=True)


def publish_content(context: ActivityContext, draft: Draft) -> str:
    """Write the draft as `published/<instance>.md`, once, however often this runs; returns the file's path."""
    base = Path(setting("CONTENT_DIRECTORY") or Path(__file__).parent)
    path = base.resolve() / "published" / f"{file_name(context.orchestration_id)}.md"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name first, so that nobody ever sees half of the file.
        unfinished = path.with_name(f".{uuid4().hex}.part")
        unfinished.write_text(f"# {' '.join(draft.title.split())}\n\n{draft.content}\n", encoding="utf-8")
        unfinished.replace(path)
    return str(path)


def file_name(instance_id: str) -> str:
    """A file name for an id: the same for the same id, another for another, and never a path."""
    if re.fullmatch(r"[a-z0-9-]{6,80}", instance_id):
        return instance_id
    readable = re.sub(r"[^A-Za-z0-9]+", "-", instance_id)[:40].strip("-")
    return f"{readable}~{sha256(instance_id.encode()).hexdigest()[:24]}"
