"""Pydantic models as inputs and outputs of orchestrations and activities: checked where they arrive."""

from typing import Any, get_args

from durabletask.serialization import JsonDataConverter
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python


class ModelConverter(JsonDataConverter):
    """The SDK's JSON, and pydantic where an orchestration or activity declares a model.

    Everything else passes as before: conversations, and the data of external events, which their receiver checks.
    """

    def serialize(self, value: Any) -> str | None:
        return super().serialize(to_jsonable_python(value) if isinstance(value, BaseModel) else value)

    def deserialize(self, data: str | None, target_type: Any = None) -> Any:
        if not data or not self._names_model(target_type):
            return super().deserialize(data, target_type)
        try:
            return TypeAdapter(target_type).validate_json(data)
        except ValidationError as error:
            problem = in_words(error)
        name = getattr(target_type, "__name__", str(target_type))
        raise ValueError(f"The input is not a valid {name}. {problem}")

    def can_reconstruct(self, target_type: Any) -> bool:
        return self._names_model(target_type) or super().can_reconstruct(target_type)

    def _names_model(self, declared: Any) -> bool:
        if isinstance(declared, type) and issubclass(declared, BaseModel):
            return True
        return any(self._names_model(part) for part in get_args(declared))  # Model | None, list[Model]


def in_words(error: ValidationError) -> str:
    """What is wrong with each field, in one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or error.title}: {one['msg']}" for one in error.errors())
