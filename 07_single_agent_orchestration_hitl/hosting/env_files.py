"""The files named `.env`: settings for those that the environment does not have."""

import os
from pathlib import Path

from dotenv import dotenv_values

MODELS = {  # the setting that selects a kind of model -> the other settings of that kind
    "AZURE_OPENAI_ENDPOINT": ("AZURE_OPENAI_CHAT_DEPLOYMENT_NAME", "AZURE_OPENAI_API_KEY"),
    "OPENAI_API_KEY": ("OPENAI_MODEL", "OPENAI_BASE_URL"),
}


def load_env_files(folder: Path) -> None:
    """Add what `.env` in the program's folder, or in the one above, sets. The environment wins.

    A model that the environment selects wins as a whole: the settings of the other kind are not read from a file.
    """
    settings = {**dotenv_values(folder.parent / ".env"), **dotenv_values(folder / ".env")}
    selected = [kind for kind in MODELS if os.environ.get(kind)]
    hidden = {name for kind, others in MODELS.items() if kind not in selected for name in (kind, *others)}
    for name, value in settings.items():
        if not (selected and name in hidden):
            os.environ.setdefault(name, value or "")
