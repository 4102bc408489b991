"""Pydantic models as inputs and outputs of orchestrations and activities: checked where they arrive."""

from typing import Any, get_args

from durabletask.serialization import JsonDataConverter
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python


class ModelConverter(JsonDataConverter):
    """The SDK's JSON, and pydantic where an orchestration or activity declares a model.

    Everything else passes as before: conversations, and the data of external events, which their receiver checks. Data
    that is not JSON passes as text: it would fail an orchestration that can ignore such an event.
    """

    def serialize(self, value: Any) -> str | None:
        try:
            return super().serialize(value)
        except TypeError:  # it holds a model
            return super().serialize(to_jsonable_python(value))

    def deserialize(self, data: str | None, target_type: Any = None) -> Any:
        if not (models := _models_in(target_type)):
            try:
                return super().deserialize(data, target_type)
            except (ValueError, RecursionError):
                return data
        try:
            return TypeAdapter(target_type).validate_json(data or "null")
        except ValidationError as error:
            problem = in_words(error)
        raise ValueError(f"The input is not a valid {' or '.join(models)}. {problem}")

    def can_reconstruct(self, target_type: Any) -> bool:
        return bool(_models_in(target_type)) or super().can_reconstruct(target_type)


def _models_in(declared: Any) -> list[str]:
    """The names of the models in a type such as Model, Model | None or list[Model]."""
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        return [declared.__name__]
    return [name for part in get_args(declared) for name in _models_in(part)]


def in_words(error: ValidationError) -> str:
    """What is wrong with each field, in one line."""
    return "; ".join(": ".join(filter(None, [".".join(map(str, one["loc"])), one["msg"]])) for one in error.errors())
