"""JSON schemas that were made to hurt whoever reads, compiles or follows them. The same seed gives the same ones."""

import random
from collections.abc import Callable
from typing import Any

Table = dict[str, Any]
Dice = random.Random

REGEXES = (
    "^(a+)+$",
    "^(a|aa)+$",
    "^([a-z]*)*$",
    "^(.*.*.*.*)x$",
    "^(a{1,100}){1,100}$",
    "^((a{0,50}){0,50}){0,50}$",
    "^.{0,10000}$",
    "^(x{1,200}y{1,200}){1,200}$",
    "^(([^a]|[^b]|[^c])*){1,99}$",
    "^" + "(" * 200 + "a" + ")" * 200 + "$",
    "^" + "a?" * 300 + "a" * 300 + "$",
    "^" + "|".join(f"[a-z]*{n}[a-z]*" for n in range(300)) + "$",
    "^[\\u0000-\\uffff]{1,5000}$",
    "^(?=.*a)(?=.*b).*$",
    "^(a)\\1$",
    "(",
)


def _nested(dice: Dice, wrap: Callable[[Table], Table]) -> Table:
    schema: Table = {"type": "integer"}
    for _ in range(dice.choice([30, 90, 300])):
        schema = wrap(schema)
    return schema


def deep_objects(dice: Dice) -> Table:
    return _nested(
        dice, lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    )


def deep_lists(dice: Dice) -> Table:
    return _nested(dice, lambda inner: {"type": "array", "items": inner})


def deep_choices(dice: Dice) -> Table:
    return _nested(dice, lambda inner: {"anyOf": [{"type": "null"}, {"items": inner}]})


def recursive(dice: Dice) -> Table:
    """Each definition has all others in it, and only some of them come to an end."""
    count = dice.choice([2, 10, 40])
    refs = [{"$ref": f"#/$defs/d{n}"} for n in range(count)]
    ends = dice.random() < 0.5
    defs = {
        f"d{n}": {
            "type": "object",
            "properties": {f"p{m}": ref for m, ref in enumerate(refs)},
            "required": [] if ends else ["p0"],
        }
        for n in range(count)
    }
    return {"$ref": "#/$defs/d0", "$defs": defs}


def endless(dice: Dice) -> Table:
    """References that lead to nothing but references."""
    loops: tuple[Table, ...] = (
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/none"},
        {"allOf": [{"$ref": "#"}, {"type": "object"}]},
        {"anyOf": [{"$ref": "#"}]},
        {"$ref": "http://localhost:1/schema"},
    )
    return dice.choice(loops)


def huge_enum(dice: Dice) -> Table:
    count, length = dice.choice([(200, 20), (3000, 40), (20_000, 8)])
    letters = 'abcdefäö\\"\n😀'
    words = ["".join(dice.choices(letters, k=length)) for _ in range(count)]
    return {"enum": [*words, *range(count // 10)]}


def wide(dice: Dice) -> Table:
    count = dice.choice([50, 400, 2000])
    names = [f"{dice.choice('abc')}{n}" for n in range(count)]
    schema: Table = {"type": "object", "properties": {n: {"type": "integer"} for n in names}}
    if dice.random() < 0.5:
        schema["required"] = names[:: dice.choice([1, 2, 7])]
    if dice.random() < 0.5:
        schema["patternProperties"] = {f"^{dice.choice('xyz')}{n}": {} for n in range(count // 10)}
    return schema


def regex(dice: Dice) -> Table:
    pattern = dice.choice(REGEXES)
    if dice.random() < 0.3:
        return {"type": "object", "patternProperties": {pattern: {"type": "null"}}}
    schema: Table = {"type": "string", "pattern": pattern}
    if dice.random() < 0.3:
        schema["maxLength"] = dice.choice([3, 1000])
    return schema


def merged(dice: Dice) -> Table:
    """Alternatives within conjunctions, of which there are more together than anybody can count."""
    count = dice.choice([3, 8, 16])
    parts = [
        {"anyOf": [{"type": "object", "required": [f"{n}{m}"]} for m in range(count)]}
        for n in range(count)
    ]
    return {"allOf": parts}


def extreme(dice: Dice) -> Table:
    numbers: tuple[Table, ...] = (
        {"type": "string", "minLength": 10**6},
        {"type": "string", "maxLength": 10**9},
        {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "array", "minItems": 10**5, "items": {"type": "integer"}},
        {"type": "array", "maxItems": 10**9},
        {"type": "array", "prefixItems": [{"type": "integer"}] * 3000},
        {"type": "number", "multipleOf": 1e-9},
        {"type": "integer", "multipleOf": 982_451_653},
        {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
        {"type": "number", "minimum": 1.0000000000000002, "maximum": 1.0000000000000004},
        {"type": "object", "minProperties": 10**6},
        {"type": ["string", "nothing"]},
        {"type": "string", "minLength": -1},
        {"enum": []},
        {"const": {"a": [[[[]]]] * 500}},
    )
    return dice.choice(numbers)


FAMILIES = (
    *(deep_objects, deep_lists, deep_choices, recursive, endless),
    *(huge_enum, wide, regex, merged, extreme),
)


def schemas(count: int, seed: int = 20) -> list[Table]:
    """Of each family as many."""
    dice = Dice(seed)
    return [FAMILIES[n % len(FAMILIES)](dice) for n in range(count)]
