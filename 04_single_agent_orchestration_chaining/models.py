"""What crosses a boundary: between client and orchestration."""

from typing import Annotated

from pydantic import RootModel, StringConstraints


class Topic(RootModel[str]):
    """What the sentence is about; it may be empty."""

    root: Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]
