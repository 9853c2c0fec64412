"""JSON schemas as people's programs write them: pydantic, zod and by hand, with every keyword that can be enforced.

The same seed gives the same schemas. `Schemas.used` counts the keywords, so that none is forgotten.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

Table = dict[str, Any]

NAMES = """
    id name title description status type kind amount price quantity currency email phone address city country
    postal_code created_at updated_at due_date starts_at ends_at tags labels items notes url image_url score rating
    priority is_active is_public owner author reviewer summary steps reason confidence language category code sku
    latitude longitude width height duration version parent children metadata options settings comment
    """.split()  # noqa: SIM905 - a list of them would be a page long
VALUES = (
    "low",
    "medium",
    "high",
    "open",
    "closed",
    "draft",
    "red",
    "green",
    "en",
    "de",
    "EUR",
    "USD",
)
FORMATS = (
    "date",
    "time",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
)
PATTERNS = (
    "^[A-Z]{2}$",
    "^[A-Z]{3}-[0-9]{4}$",
    r"^\d{5}(-\d{4})?$",
    r"^\+?[1-9]\d{6,14}$",
    "^#[0-9a-fA-F]{6}$",
    "^(foo|bar|baz)(-[0-9]{1,3})?$",
    r"^[a-z][a-z0-9_]{0,15}$",
    "^v[0-9]+[.][0-9]+[.][0-9]+$",
)
DEPTH = 3


class Schemas:
    """Makes schemas by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._defs: Table = {}
        self.used: Counter[str] = Counter()

    def make(self) -> Table:
        """A whole schema, in the manner of one of the libraries."""
        self._defs = {}
        write = self._random.choice([self._pydantic, self._zod, self._by_hand])
        schema = write(self._root())
        if self._defs:
            schema["$defs"] = self._defs
        count(schema, self.used)
        return schema

    def _root(self) -> Table:
        shapes: list[Callable[[], Table]] = [self._object] * 8
        shapes += [self._list_of_objects, self._tagged_union, self._tree]
        return self._random.choice(shapes)()

    def _pydantic(self, schema: Table) -> Table:
        """Titles everywhere, defaults and null unions for what is optional."""
        schema["title"] = "".join(part.title() for part in self._random.sample(NAMES, 2))
        for name, value in schema.get("properties", {}).items():
            if "$ref" not in value:
                value["title"] = name.replace("_", " ").title()
            if self._chance(0.2):
                value["description"] = f"The {name}, as the customer wrote it."
        return schema

    def _zod(self, schema: Table) -> Table:
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    def _by_hand(self, schema: Table) -> Table:
        if self._chance(0.5):
            schema["description"] = 'What the model is to answer, in "our" words.'
        for value in schema.get("properties", {}).values():
            if self._chance(0.1) and "$ref" not in value:
                value["examples"] = ["see the manual"]
        return schema

    def _value(self, depth: int) -> Table:
        leaves = [
            self._string,
            self._formatted,
            self._patterned,
            self._integer,
            self._number,
            self._boolean,
            self._enum,
            self._const,
        ]
        wrapped = [self._nullable, self._nullable_type, self._either]
        if depth >= DEPTH:
            return self._random.choice(leaves)()
        nested: list[Callable[[], Table]] = [
            lambda: self._array(depth),
            lambda: self._array(depth),
            lambda: self._object(depth + 1),
            lambda: self._tuple(depth),
            lambda: self._map(depth),
            lambda: self._reference(depth),
            lambda: self._merged(depth),
            *(lambda wrap=wrap: wrap(depth) for wrap in wrapped),  # type: ignore[misc]
        ]
        return self._random.choice(leaves if self._chance(0.6) else nested)()

    def _object(self, depth: int = 0) -> Table:
        most = 6 if depth == 0 else 3
        names = self._random.sample(NAMES, self._random.randint(1, most))
        properties = {name: self._value(depth + 1) for name in names}
        required = [name for name in names if self._chance(0.8)]
        schema: Table = {"type": "object", "properties": properties}
        if required or self._chance(0.5):
            schema["required"] = required
        if self._chance(0.9):
            schema["additionalProperties"] = False
        if len(required) == len(names) and self._chance(0.1):
            schema["minProperties"] = len(names)
        return schema

    def _list_of_objects(self) -> Table:
        return {"type": "array", "items": self._object(1), "minItems": 1, "maxItems": 4}

    def _tagged_union(self) -> Table:
        """As pydantic writes a union with a discriminator."""
        tags = self._random.sample(VALUES, 2)
        branches = []
        for tag in tags:
            branch = self._object(1)
            branch["properties"] = {
                "kind_of": {"const": tag, "type": "string"},
                **branch["properties"],
            }
            branch["required"] = ["kind_of", *branch.get("required", ())]
            branches.append(self._named(branch))
        return {"oneOf": branches}

    def _tree(self) -> Table:
        """A schema that refers to itself."""
        node: Table = {
            "type": "object",
            "properties": {
                "name": self._string(),
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 2},
            },
            "required": ["name", "children"],
            "additionalProperties": False,
        }
        self._defs["Node"] = node
        return {"$ref": "#/$defs/Node"}

    def _string(self) -> Table:
        schema: Table = {"type": "string"}
        if self._chance(0.3):
            schema["maxLength"] = self._random.randint(1, 80)
        if self._chance(0.2):
            schema["minLength"] = self._random.randint(0, schema.get("maxLength", 5))
        return schema

    def _formatted(self) -> Table:
        return {"type": "string", "format": self._random.choice(FORMATS)}

    def _patterned(self) -> Table:
        return {"type": "string", "pattern": self._random.choice(PATTERNS)}

    def _integer(self) -> Table:
        schema: Table = {"type": "integer"}
        low = self._random.randint(-50, 50)
        if self._chance(0.5):
            schema[self._random.choice(["minimum", "exclusiveMinimum"])] = low
        if self._chance(0.4):
            schema[self._random.choice(["maximum", "exclusiveMaximum"])] = low + 100
        if self._chance(0.15):
            schema["multipleOf"] = self._random.choice([2, 5, 10])
        return schema

    def _number(self) -> Table:
        schema: Table = {"type": "number"}
        if self._chance(0.5):
            schema[self._random.choice(["minimum", "exclusiveMinimum"])] = 0
        if self._chance(0.4):
            schema[self._random.choice(["maximum", "exclusiveMaximum"])] = self._random.choice(
                [1, 99.5, 1000]
            )
        if self._chance(0.15):
            schema["multipleOf"] = self._random.choice([0.5, 0.25, 0.01])
        return schema

    def _boolean(self) -> Table:
        return {"type": "boolean"}

    def _enum(self) -> Table:
        values: list[Any] = self._random.sample(VALUES, self._random.randint(1, 5))
        if self._chance(0.2):
            return {"enum": [*values, self._random.randint(0, 9), None, True]}
        return {"type": "string", "enum": values}

    def _const(self) -> Table:
        return {"const": self._random.choice([*VALUES, 7, None, False, {"a": [1, "b"]}])}

    def _array(self, depth: int) -> Table:
        schema: Table = {"type": "array", "items": self._value(depth + 1)}
        if self._chance(0.4):
            schema["minItems"] = self._random.randint(0, 2)
        if self._chance(0.6):
            schema["maxItems"] = self._random.randint(2, 5)
        return schema

    def _tuple(self, depth: int) -> Table:
        places = [self._value(depth + 1) for _ in range(self._random.randint(1, 3))]
        rest: Any = False if self._chance(0.7) else self._boolean()
        schema: Table = {"type": "array", "prefixItems": places, "items": rest}
        schema["minItems"] = len(places)
        schema["maxItems"] = len(places) + (0 if rest is False else 2)
        return schema

    def _map(self, depth: int) -> Table:
        value = self._value(depth + 1)
        if self._chance(0.4):
            return {
                "type": "object",
                "patternProperties": {"^[a-z]{1,8}$": value},
                "additionalProperties": False,
                "maxProperties": 3,
            }
        return {"type": "object", "additionalProperties": value, "maxProperties": 2}

    def _reference(self, depth: int) -> Table:
        return self._named(self._object(depth + 1))

    def _named(self, schema: Table) -> Table:
        name = f"Model{len(self._defs)}"
        self._defs[name] = schema
        return {"$ref": f"#/$defs/{name}"}

    def _merged(self, depth: int) -> Table:
        """As older pydantic writes a reference that has a description."""
        return {"allOf": [self._reference(depth)], "description": "See there."}

    def _nullable(self, depth: int) -> Table:
        return {"anyOf": [self._value(depth + 1), {"type": "null"}], "default": None}

    def _nullable_type(self, depth: int) -> Table:
        kind = self._random.choice(["string", "integer", "boolean", "number"])
        return {"type": [kind, "null"]}

    def _either(self, depth: int) -> Table:
        return {"anyOf": [self._integer(), self._enum(), self._object(depth + 1)]}

    def _chance(self, share: float) -> bool:
        return self._random.random() < share


HOLD_SCHEMAS = frozenset({"properties", "patternProperties", "$defs"})


def count(schema: Any, used: Counter[str]) -> None:
    """Which keywords a schema has, those of the schemas in it too."""
    if isinstance(schema, list):
        for each in schema:
            count(each, used)
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        used[keyword if keyword != "format" else f"format {value}"] += 1
        if keyword in HOLD_SCHEMAS:
            count(list(value.values()), used)
        elif keyword not in ("const", "enum", "default", "examples"):
            count(value, used)
