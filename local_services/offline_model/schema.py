"""A value for a JSON schema. It knows what pydantic and the openai package write for simple models, and no more.

The libraries for this choose random values, and evaluate patterns, which can take forever.
"""

from collections.abc import Callable, Iterable, Iterator
from math import ceil, floor
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from pydantic.alias_generators import to_camel

Kind = Literal["object", "array", "string", "integer", "number", "boolean", "null"]
Scalar = str | bool | int | FiniteFloat | None
Bound = Annotated[float, Field(ge=-1e15, le=1e15)] | None

KINDS: dict[type, set[Kind]] = {
    str: {"string"},
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    type(None): {"null"},
}
MOST_VALUES = 1_000
DEEPEST = 40  # levels of objects, arrays and references
SHALLOW = 3  # deeper than this, only what is required is filled in, so that recursive schemas end


class Unsupported(Exception):
    """The offline model has no value for this schema; the message says why."""


class Schema(BaseModel):
    """The supported keywords. Any other one is refused."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)

    type: Annotated[list[Kind], BeforeValidator(lambda kind: [kind] if isinstance(kind, str) else kind)] = []
    enum: Annotated[list[Scalar], Field(max_length=500)] = []
    const: Scalar = None
    any_of: list["Schema"] = []
    ref: str = Field("", alias="$ref")
    defs: dict[str, "Schema"] = Field({}, alias="$defs")
    properties: dict[str, "Schema"] = {}
    required: list[str] = []
    additional_properties: Any = True
    items: "Schema | None" = None
    min_items: Annotated[int, Field(ge=0, le=MOST_VALUES)] = 0
    max_items: Annotated[int, Field(ge=0)] = MOST_VALUES
    minimum: Bound = None
    maximum: Bound = None
    exclusive_minimum: Bound = None
    exclusive_maximum: Bound = None
    default: Any = None
    title: Any = None
    description: Any = None
    examples: Any = None

    @model_validator(mode="after")
    def _stands_alone(self) -> "Schema":
        restricting = self.model_fields_set - {"defs", "default", "title", "description", "examples"}
        if len(restricting) > 1 and restricting & {"ref", "any_of"}:
            raise ValueError("the offline model does not support '$ref' or 'anyOf' next to other keywords")
        return self

    @property
    def choices(self) -> list[Any]:
        """The values of `enum` or `const`; empty if it has neither."""
        return self.enum or ([self.const] if "const" in self.model_fields_set else [])

    @property
    def kind(self) -> Kind:
        """The type to choose."""
        likely = "object" if self.properties else "array" if self.items else "string"
        return self.type[0] if self.type else "number" if self.bounds else likely

    @property
    def bounds(self) -> list[float]:
        """The bounds of a number, the lower ones first."""
        bounds = (self.minimum, self.exclusive_minimum, self.maximum, self.exclusive_maximum)
        return [bound for bound in bounds if bound is not None]

    def accepts(self, value: Any) -> bool:
        """Whether a string, number, boolean or null is valid."""
        kinds = KINDS.get(type(value), set())
        if not kinds or (not self.choices and not kinds & set(self.type or [self.kind])):
            return False
        if self.choices:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        return "number" not in kinds or not (
            (self.minimum is not None and value < self.minimum)
            or (self.maximum is not None and value > self.maximum)
            or (self.exclusive_minimum is not None and value <= self.exclusive_minimum)
            or (self.exclusive_maximum is not None and value >= self.exclusive_maximum)
        )


Suggest = Callable[[str, Schema], Iterable[Any]]  # from a property's name and schema to likely values, the best first
ANYTHING = Schema.model_validate({})


def fill(schema: dict[str, Any], suggest: Suggest) -> Any:
    """A value that the schema accepts, with what `suggest` proposes wherever that is valid. Raises Unsupported."""
    try:
        root = Schema.model_validate(schema)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        unknown = problem["type"] == "extra_forbidden"
        reason = "the offline model does not support this keyword" if unknown else problem["msg"]
        raise Unsupported(f"{'.'.join(map(str, problem['loc'])) or 'it'}: {reason}") from error
    return _Filler(root, suggest).value(root, "", 0)


class _Filler:
    def __init__(self, root: Schema, suggest: Suggest) -> None:
        self.named = {"#": root, **{f"#/$defs/{name}": schema for name, schema in root.defs.items()}}
        self.suggest = suggest
        self.steps = 0

    def value(self, schema: Schema, name: str, depth: int) -> Any:
        """A value for the property with this name."""
        options = list(self._options(schema, depth))
        for option in options:
            for proposal in (*self.suggest(name, option), *([] if schema.default is None else [schema.default])):
                if option.accepts(proposal):
                    return proposal
        if depth > SHALLOW:
            options.sort(key=lambda option: option.kind in ("object", "array"))
        return self._example(options[0], name, depth)

    def _options(self, schema: Schema, depth: int) -> Iterator[Schema]:
        """The alternatives that a schema allows, without references."""
        self.steps += 1
        if self.steps > MOST_VALUES or depth > DEEPEST:
            raise Unsupported(f"a value would need more than {MOST_VALUES} steps or {DEEPEST} levels")
        if schema.ref and schema.ref not in self.named:
            raise Unsupported(f"'{schema.ref}' is not in the schema's '$defs'")
        for option in [self.named[schema.ref]] if schema.ref else schema.any_of:
            yield from self._options(option, depth + 1)
        if not (schema.ref or schema.any_of):
            yield schema

    def _example(self, schema: Schema, name: str, depth: int) -> Any:
        if schema.kind == "object" and not schema.choices:
            if schema.additional_properties is not True and set(schema.required) - schema.properties.keys():
                raise Unsupported(f"'{name}' requires properties that it does not list")
            keys = [*schema.required, *(schema.properties if depth <= SHALLOW else [])]
            return {
                key: self.value(schema.properties.get(key, ANYTHING), key, depth + 1) for key in dict.fromkeys(keys)
            }
        if schema.kind == "array" and schema.min_items <= schema.max_items and not schema.choices:
            count = min(max(1, schema.min_items), schema.max_items) if depth <= SHALLOW else schema.min_items
            return [self.value(schema.items or ANYTHING, name.removesuffix("s"), depth + 1) for _ in range(count)]
        low, high = (schema.bounds or [1])[0], (schema.bounds or [1])[-1]
        numbers = [1, ceil(low), floor(low) + 1, floor(high), ceil(high) - 1, (low + high) / 2]
        for value in schema.choices or [f"sample {name.replace('_', ' ')}".strip(), *numbers, False, None]:
            if schema.accepts(value):
                return value
        raise Unsupported(f"no value is valid for '{name}'")
