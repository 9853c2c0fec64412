"""How a model's source is written: what of it a hub is asked for, and whether it is a GGUF file. Pure."""

import re
from typing import NamedTuple

MAIN = "main"
"""The revision of a source that names none."""

FORMS = "builtin:NAME, a folder, a .gguf file, or hf:ORG/NAME[@REVISION][:FILE]"

BUILTIN = re.compile(r"builtin:([a-z0-9][a-z0-9._-]*)")
BUILTIN_GGUF = "-gguf"
"""A built-in model's name with this at its end is the same model as a GGUF file."""

_HUB = re.compile(
    r"hf:([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\w[\w./-]*))?(?::([A-Za-z0-9_][\w./-]*))?",
    re.ASCII,
)


class HubSource(NamedTuple):
    """`hf:ORG/NAME[@REVISION][:FILE]`, taken apart."""

    repository: str
    revision: str = MAIN
    pick: str = ""
    """Of the repository's GGUF files: a path in it, or the quantisation that a name ends in, such as Q4_K_M."""

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repository}{revision}" + (f":{self.pick}" if self.pick else "")

    @property
    def is_gguf(self) -> bool:
        """A file of it is meant: one is named, or the repository's name says that there is nothing else."""
        return bool(self.pick) or self.repository.lower().endswith("-gguf")


def is_hub_source(source: str) -> bool:
    """`hf:ORG/NAME`, with a revision, with a file."""
    return _HUB.fullmatch(source) is not None


def parse_hub_source(source: str) -> HubSource:
    """`source` may begin with `hf:`. What is no hub source becomes the name of a repository that there is none of."""
    match = _HUB.fullmatch("hf:" + source.removeprefix("hf:"))
    if match is None:
        return HubSource(source.removeprefix("hf:"))
    return HubSource(match[1], match[2] or MAIN, match[3] or "")


def is_gguf_source(source: str) -> bool:
    """Whether the engine for GGUF files is meant where none is named."""
    if source.startswith("builtin:"):
        return source.endswith(BUILTIN_GGUF)
    if source.startswith("hf:"):
        return parse_hub_source(source).is_gguf
    return source.lower().endswith(".gguf")
