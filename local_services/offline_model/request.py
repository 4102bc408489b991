"""The parts of a chat completion request that the model uses, validated. It ignores all others."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Shape(BaseModel):
    """A field that is null counts as left out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class FunctionCall(Shape):
    name: str
    arguments: str = ""


class ToolCall(Shape):
    id: str
    function: FunctionCall


class Message(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str = ""  # of an array of parts, the texts
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, content: Any) -> Any:
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
        if not isinstance(content, str):
            raise ValueError("it must be a string or an array of objects")
        return content

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise ValueError(f"a message with the role '{self.role}' needs 'content'")
        return self


class Function(Shape):
    name: FunctionName
    parameters: dict[str, Any] = {"type": "object"}


class Tool(Shape):
    type: Literal["function"]
    function: Function


class ChosenFunction(Shape):
    name: str


class ChosenTool(Shape):
    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Shape):
    name: Annotated[str, StringConstraints(min_length=1)]
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Shape):
    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type 'json_schema' needs 'json_schema' with 'name' and 'schema'")
        return self


class StreamOptions(Shape):
    include_usage: bool = False


class ChatRequest(Shape):
    model: Annotated[str, StringConstraints(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    tools: Annotated[list[Tool], Field(fail_fast=True)] = []
    tool_choice: Literal["none", "auto", "required"] | ChosenTool = "auto"
    response_format: ResponseFormat = ResponseFormat()
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @field_validator("messages")
    @classmethod
    def _calls_have_results(cls, messages: list[Message]) -> list[Message]:
        """Every tool call is followed by its result, and every result has its call."""
        waiting: set[str] = set()
        for number, message in enumerate(messages):
            if message.role == "tool":
                if message.tool_call_id not in waiting:
                    raise ValueError(f"the 'tool_call_id' of messages[{number}] belongs to none of the calls before it")
                waiting.remove(message.tool_call_id)
            elif waiting:
                break
            else:
                waiting = {call.id for call in message.tool_calls}
        if waiting:
            calls = ", ".join(sorted(waiting))
            raise ValueError(f"each tool call needs a message with its result. These have none: {calls}")
        return messages

    @model_validator(mode="after")
    def _streams_if_it_has_options(self) -> "ChatRequest":
        if self.stream_options and not self.stream:
            raise ValueError("'stream_options' is only allowed when 'stream' is true")
        return self
