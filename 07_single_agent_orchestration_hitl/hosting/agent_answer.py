"""What an agent in an orchestration has answered: its text, or a pydantic model; or why that is no answer."""

from typing import TypeVar

from agent_framework import AgentResponse
from pydantic import BaseModel, ValidationError

from .payloads import in_words

M = TypeVar("M", bound=BaseModel)


class AgentFailed(Exception):
    """An agent gave no usable answer; the message names the agent and says why. `code`: the kind, see model_errors."""

    def __init__(self, agent_name: str, reason: str, code: str | None = None) -> None:
        super().__init__(f"{agent_name}: {reason}")
        self.code = code


def text_of(agent_name: str, response: AgentResponse) -> str:
    """The answer's text. The runtime hands over a failed call as an answer with an empty text: here it is raised."""
    for content in (content for message in response.messages for content in message.contents):
        if content.type == "error":
            raise AgentFailed(agent_name, content.message or "It failed without a message.", content.error_code)
    if not (text := response.text.strip()):
        raise AgentFailed(agent_name, "The model's answer is empty.", "AnswerUnusable")
    return text


def parsed(agent_name: str, response: AgentResponse, model: type[M]) -> M:
    """The answer as a pydantic model."""
    text = text_of(agent_name, response)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = in_words(error)
    reason = f"The answer is not a valid {model.__name__}. {problem}. It said: {text[:200]}"
    raise AgentFailed(agent_name, reason, "AnswerUnusable")
