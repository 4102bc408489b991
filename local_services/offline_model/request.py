"""The parts of a chat completion request that the model uses, validated. It ignores all others."""

from json import dumps
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator


def small(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema, if it is one for a person's form. The work for a larger one would keep others waiting."""
    if len(dumps(schema)) > 100_000:
        raise ValueError("the offline model reads JSON schemas of up to 100,000 characters")
    return schema


JsonSchema = Annotated[dict[str, Any], AfterValidator(small)]


class FunctionCall(BaseModel):
    name: str
    arguments: str | None = None


class ToolCall(BaseModel):
    id: str
    function: FunctionCall


class Part(BaseModel):
    text: str | None = None


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content's text."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text)
        return self.content or ""


class Function(BaseModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    parameters: JsonSchema | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class ChosenTool(BaseModel):
    function: FunctionCall


class AnswerFormat(BaseModel):
    name: Annotated[str, Field(min_length=1)]
    schema_: JsonSchema = Field(alias="schema")


class ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: AnswerFormat | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type 'json_schema' needs 'json_schema' with 'name' and 'schema'")
        return self


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @field_validator("messages")
    @classmethod
    def _are_complete(cls, messages: list[Message]) -> list[Message]:
        """Every message has content, every tool call is followed by its result, and every result has its call."""
        waiting: set[str] = set()
        for number, message in enumerate(messages):
            if message.content is None and message.role != "assistant":
                raise ValueError(f"messages[{number}] needs 'content'")
            if message.role == "tool":
                if message.tool_call_id not in waiting:
                    raise ValueError(f"the 'tool_call_id' of messages[{number}] belongs to none of the calls before it")
                waiting.remove(message.tool_call_id)
            elif waiting:
                break
            else:
                waiting = {call.id for call in message.tool_calls or []}
        if waiting:
            calls = ", ".join(sorted(waiting))
            raise ValueError(f"each tool call needs a message with its result. These have none: {calls}")
        return messages

    @model_validator(mode="after")
    def _streams_if_it_has_options(self) -> "ChatRequest":
        if self.stream_options and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self
