"""The recipes of docs/cookbook.md: code, and what it prints."""

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "cookbook.md"
ADDRESS = "http://127.0.0.1:8000"


class Recipe(NamedTuple):
    language: str
    code: str
    printed: str | None


def sections() -> dict[str, list[Recipe]]:
    """Of each heading, its blocks of code in order."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        title: list(_recipes(text)) for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def _recipes(text: str) -> list[Recipe]:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    behind = [*blocks[1:], ("", "")]
    return [
        Recipe(language, code, after if kind == "text" else None)
        for (language, code), (kind, after) in zip(blocks, behind, strict=True)
        if language != "text"
    ]


def recipes(title: str, url: str) -> list[Recipe]:
    """Those of one heading, for a server at this address."""
    return [each._replace(code=each.code.replace(ADDRESS, url)) for each in sections()[title]]
