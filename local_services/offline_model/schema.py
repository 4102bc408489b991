"""Values for any JSON schema; a validator accepts all of them.

The libraries for this fail on recursive schemas or on `allOf`, or take half a second. So this is a small search: each
method yields candidates, the best first, and each candidate is validated before it is passed on.
"""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache, reduce
from math import ceil, floor
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from rstr import Rstr

Schema = Mapping[str, Any]
Suggest = Callable[[str, Schema], Iterable[Any]]  # from a property's name and schema to reasonable values

NOTHING = object()
SHALLOW = 6  # below this depth only required properties are filled in, so that recursive schemas end
DEEPEST = 60
MOST_STEPS = 5_000
NONE_FOUND = "the offline model found no value that it accepts"
FORMATS = {
    "date-time": "2030-06-01T12:00:00Z",
    "date": "2030-06-01",
    "time": "12:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "idn-email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uri-reference": "/example",
    "iri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "json-pointer": "/example",
    "regex": "^example$",
}


class NoValue(Exception):
    """No value is known that the schema accepts, or the schema itself is not valid; the message says which."""


def fill(schema: Schema | bool, suggest: Suggest = lambda name, schema: ()) -> Any:
    """A value that the schema accepts, with what `suggest` proposes for a property wherever that is valid.

    Raises NoValue.
    """
    try:
        value = next(_Filler(schema, suggest).values(schema), NOTHING)
    except SchemaError as error:
        raise NoValue(f"it is not a valid JSON schema: {error.message}") from error
    except NoValue:
        raise
    except Exception as error:  # a pattern that Python does not support, an unresolvable reference, …
        raise NoValue(f"the offline model cannot read it: {type(error).__name__}: {error}") from error
    if value is NOTHING:
        raise NoValue(NONE_FOUND)
    return value


@lru_cache(maxsize=64)
def _validator(schema: str) -> Validator:
    parsed = json.loads(schema)
    kind = validator_for(parsed, default=Draft202012Validator)
    kind.check_schema(parsed)
    return kind(parsed, format_checker=kind.FORMAT_CHECKER)


class _Filler:
    def __init__(self, schema: Schema | bool, suggest: Suggest) -> None:
        self.validator = _validator(json.dumps(schema))
        self.resolver = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
        self.suggest = suggest
        self.steps = 0

    def values(self, schema: Schema | bool, name: str = "", depth: int = 0) -> Iterator[Any]:
        """Values that the schema accepts, for a property with that name."""
        schema = _object_form(schema)
        valid = self.validator.evolve(schema=schema)
        self._step()
        for value in itertools.islice(self._candidates(schema, name, depth), 1000):
            self._step()
            if valid.is_valid(value):
                yield value

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise NoValue(NONE_FOUND)

    def _candidates(self, schema: Schema, name: str, depth: int) -> Iterator[Any]:
        if depth > DEEPEST:
            return
        yield from self.suggest(name, schema)
        if "const" in schema:
            yield schema["const"]
        if schema.get("default") is not None:
            yield schema["default"]
        yield from schema.get("examples", [])
        yield from schema.get("enum", [])
        if not {"const", "enum"} & schema.keys():
            for variant in self._variants(schema, depth):
                if variant is schema:
                    for kind in _types(schema):
                        yield from getattr(self, f"_{kind}")(schema, name, depth)
                else:
                    yield from self.values(variant, name, depth + 1)

    def _variants(self, schema: Schema, depth: int) -> Iterator[Schema]:
        """The schema with its first reference, combination or condition resolved; itself if it has none."""
        if "$ref" in schema:
            yield _merged(_without(schema, "$ref"), self.resolver.lookup(schema["$ref"]).contents)
        elif "allOf" in schema:
            yield reduce(_merged, schema["allOf"], _without(schema, "allOf"))
        elif options := next((schema[key] for key in ("anyOf", "oneOf") if key in schema), None):
            base = _without(schema, "anyOf" if "anyOf" in schema else "oneOf")
            if depth > SHALLOW:  # those without references end a recursion
                options = sorted(options, key=lambda option: '"$ref"' in json.dumps(option))
            yield from (_merged(base, option) for option in options)
        elif "if" in schema:
            base = _without(schema, "if", "then", "else")
            yield _merged(base, schema.get("else", {}))
            yield _merged(_merged(base, schema["if"]), schema.get("then", {}))
        else:
            yield schema

    def _object(self, schema: Schema, name: str, depth: int) -> Iterator[dict[str, Any]]:
        required = list(dict.fromkeys(schema.get("required", [])))
        others = [key for key in schema.get("properties", {}) if key not in required]
        room = schema.get("maxProperties", len(required) + len(others)) - len(required)
        everything = [*required, *others[: max(room, 0)]]
        sources: dict[str, Iterator[Any]] = {}
        result: dict[str, Any] = {}
        for names in [everything, required] if depth <= SHALLOW else [required]:
            sources = {key: self.values(_property(schema, key), key, depth + 1) for key in names}
            result = {key: next(source, NOTHING) for key, source in sources.items()}
            if any(result[key] is NOTHING for key in required):
                return
            result = {key: value for key, value in result.items() if value is not NOTHING}
            self._pad(result, schema, depth)
            yield dict(result)
        yield from _variations(result, sources)

    def _pad(self, result: dict[str, Any], schema: Schema, depth: int) -> None:
        """Add properties with unused names until `minProperties` is reached."""
        if len(result) >= schema.get("minProperties", 0):
            return
        patterns = [{"pattern": pattern} for pattern in schema.get("patternProperties", {})]
        for key in self.values(
            {"type": "string", **(patterns[0] if patterns else schema.get("propertyNames", {}))}, "key"
        ):
            if (
                key not in result
                and (value := next(self.values(_property(schema, key), key, depth + 1), NOTHING)) is not NOTHING
            ):
                result[key] = value
            if len(result) >= schema["minProperties"]:
                return

    def _array(self, schema: Schema, name: str, depth: int) -> Iterator[list[Any]]:
        least, most = schema.get("minItems", 0), schema.get("maxItems", 10_000)
        if least > 10_000:
            return
        first = [next(self.values(item, name, depth + 1), NOTHING) for item in schema.get("prefixItems", [])]
        if "contains" in schema:
            wanted = self.values(schema["contains"], name, depth + 1)
            first += _take(wanted, schema.get("minContains", 1), unique=schema.get("uniqueItems", False))
        if NOTHING in first:
            return
        usual = max(least, min(2, most), len(first)) if depth <= SHALLOW else least
        for count in dict.fromkeys([usual, least]):
            items = self.values(schema.get("items", True), name.removesuffix("s"), depth + 1)
            rest = _take(items, max(0, count - len(first)), unique=schema.get("uniqueItems", False), taken=first)
            yield [*first, *rest]

    def _string(self, schema: Schema, name: str, depth: int) -> Iterator[str]:
        least, most = schema.get("minLength", 0), schema.get("maxLength", 1_000_000)
        if schema.get("format") in FORMATS:
            yield FORMATS[schema["format"]]
        if pattern := schema.get("pattern"):
            write = Rstr(random.Random(0))  # noqa: S311 - repeatable is what it is to be
            yield from sorted((write.xeger(pattern) for _ in range(20)), key=len)
            yield from (write.xeger(pattern) for _ in range(300))
        if least <= 1_000_000:
            text = f"sample {name.replace('_', ' ')}".strip()
            for number in itertools.count(1):
                yield _fit(text if number == 1 else f"{number} {text}", least, most)

    def _integer(self, schema: Schema, name: str, depth: int) -> Iterator[int]:
        step = Fraction(str(schema.get("multipleOf", 1)))
        yield from (int(value) for value in _steps(schema, Fraction(step.numerator)))

    def _number(self, schema: Schema, name: str, depth: int) -> Iterator[float | int]:
        low, high = _bounds(schema)
        if "multipleOf" in schema:
            for value in _steps(schema, Fraction(str(schema["multipleOf"]))):
                yield int(value) if value.denominator == 1 else float(value)
        elif low is not None and high is not None:
            yield from (float(low + (high - low) * Fraction(part, 100)) for part in (50, 0, 100, *range(1, 100)))
        else:
            yield from (float(value) for value in _steps(schema, Fraction(1)))

    def _boolean(self, schema: Schema, name: str, depth: int) -> Iterator[bool]:
        yield from (False, True)

    def _null(self, schema: Schema, name: str, depth: int) -> Iterator[None]:
        yield None


def _variations(first: dict[str, Any], sources: Mapping[str, Iterator[Any]]) -> Iterator[dict[str, Any]]:
    """More objects like the first one, each with the next value of every property that has another value."""
    result = dict(first)
    while True:
        changed = {key: value for key, source in sources.items() if (value := next(source, NOTHING)) is not NOTHING}
        if not changed:
            return
        result |= changed
        yield dict(result)


def _take(values: Iterator[Any], count: int, unique: bool, taken: Iterable[Any] = ()) -> list[Any]:
    """The first `count` values, the last one repeated if there are too few; all different if `unique`."""
    if not count:
        return []
    seen = {json.dumps(value, sort_keys=True) for value in taken}
    found: list[Any] = []
    for value in values:
        key = json.dumps(value, sort_keys=True)
        if not unique or key not in seen:
            seen.add(key)
            found.append(value)
        if len(found) == count:
            return found
    return found if unique or not found else found + found[-1:] * (count - len(found))


def _property(schema: Schema, name: str) -> Schema | bool:
    """The schema of a property with that name."""
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    patterns = schema.get("patternProperties")
    return next(iter(patterns.values())) if patterns else schema.get("additionalProperties", True)


def _types(schema: Schema) -> list[str]:
    """The types that a schema allows, or the one that its keywords suggest."""
    if "type" in schema:
        return [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    keywords = {
        "object": {
            "properties",
            "required",
            "additionalProperties",
            "minProperties",
            "patternProperties",
            "propertyNames",
        },
        "array": {"items", "prefixItems", "minItems", "uniqueItems", "contains"},
        "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    }
    likely = [kind for kind, words in keywords.items() if words & schema.keys()]
    return [*likely, "string", "integer", "object", "array", "boolean", "null"]


def _bounds(schema: Schema) -> tuple[Fraction | None, Fraction | None]:
    low = [Fraction(str(schema[key])) for key in ("minimum", "exclusiveMinimum") if key in schema]
    high = [Fraction(str(schema[key])) for key in ("maximum", "exclusiveMaximum") if key in schema]
    return max(low, default=None), min(high, default=None)


def _steps(schema: Schema, step: Fraction) -> Iterator[Fraction]:
    """Multiples of a step, from the lower bound upwards, or from the upper one down; else from one step."""
    low, high = _bounds(schema)
    if low is not None:
        return (number * step for number in itertools.count(ceil(low / step)))
    if high is not None and high < step:
        return (number * step for number in itertools.count(floor(high / step), -1))
    return (number * step for number in itertools.count(1))


def _fit(text: str, least: int, most: int) -> str:
    """The text, repeated or cut to a length between the two."""
    repeated = text if len(text) >= least else f"{text} " * (least // (len(text) + 1) + 1)
    return repeated[:most] if len(repeated) > most or len(text) >= least else repeated[: max(least, 1)]


def _object_form(schema: Schema | bool) -> Schema:
    """The schemas `true` (accepts everything) and `false` (accepts nothing) as objects."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return schema


def _without(schema: Schema, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keys}


def _merged(one: Schema | bool, other: Schema | bool) -> dict[str, Any]:
    """A schema for what both accept. It need not be exact: every value is validated against the original too."""
    one, other = _object_form(one), _object_form(other)
    result = {**one, **other}
    for key in one.keys() & other.keys():
        mine, its = one[key], other[key]
        if key == "properties":
            result[key] = {**mine, **its, **{name: _merged(mine[name], its[name]) for name in mine.keys() & its.keys()}}
        elif key == "required":
            result[key] = list(dict.fromkeys([*mine, *its]))
        elif key == "enum":
            result[key] = [value for value in mine if value in its]
        elif key == "type":
            both = [kind for kind in _types(one) + _types(other) if kind in _types(one) and kind in _types(other)]
            whole = ["integer"] if "integer" in _types(one) + _types(other) else []
            result[key] = list(dict.fromkeys(both)) or whole  # an integer is a number, too
        elif key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"):
            result[key] = max(mine, its)
        elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
            result[key] = min(mine, its)
        elif key in ("$ref", "anyOf", "oneOf", "allOf", "not", "if", "pattern") and mine != its:
            result[key] = mine
            result["allOf"] = [*result.get("allOf", []), {key: its}]
    return result
