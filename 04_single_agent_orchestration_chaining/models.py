"""What crosses a boundary: between client and orchestration."""

from typing import Annotated

from pydantic import RootModel, StringConstraints


class Topic(RootModel[str]):
    """What the sentence is about."""

    root: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
