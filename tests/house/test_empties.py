"""What is made with every request is made the quick way."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
BUILT_IN = {"dict", "frozenset", "list", "set", "tuple"}


def calls_of_aliases(code: str) -> list[int]:
    """The lines with a call such as `list[int]()`."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Subscript)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in BUILT_IN
    ]


def test_such_calls_are_found() -> None:
    assert calls_of_aliases("a: list[int] = []\nb = list[int]()\nc = list(range(3))") == [2]


def test_nothing_is_made_by_calling_its_type_with_what_is_in_it() -> None:
    """It takes ten to twenty times as long as an empty display: the alias is made anew, and fails to note itself."""
    found = [
        f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line in calls_of_aliases(path.read_text())
    ]

    assert found == []
