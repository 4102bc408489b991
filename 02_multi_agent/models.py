"""What RouterAgent answers: the worker holds its model to this form, and the client checks that it is kept."""

from typing import Literal

from pydantic import BaseModel, Field


class Routing(BaseModel):
    """Who is to answer a question, and why."""

    agent: Literal["PhysicistAgent", "ChemistAgent", "none"] = Field(description="who answers; none if nobody fits")
    reason: str = Field(description="why, in one sentence")
