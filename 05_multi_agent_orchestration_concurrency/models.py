"""What crosses a boundary: between client and orchestration."""

from typing import Annotated

from pydantic import RootModel, StringConstraints


class Question(RootModel[str]):
    """What both experts are asked."""

    root: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]
