"""What RouterAgent answers: the worker asks its model for this form, and the client checks the answer."""

from typing import Literal

from pydantic import BaseModel, Field


class Routing(BaseModel):
    """Who answers a question, and why."""

    agent: Literal["PhysicistAgent", "ChemistAgent", "none"] = Field(description="who answers; none if nobody fits")
    reason: str = Field(description="why, in one sentence")
