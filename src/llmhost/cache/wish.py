"""What one request says of the cache, in its headers. Pure.

x-llmhost-cache: on       take part, where the operator leaves it to callers
                 off      neither take an answer nor keep one
                 refresh  take none, and keep what is made
                 only     take one, or fail with `cache_miss`
                 semantic take part, and take the answer to a question that is only alike, too
x-llmhost-cache-tag: NAME     a name by which what is kept can be forgotten
cache-control: no-cache, no-store, max-age=SECONDS, only-if-cached, as HTTP has them
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llmhost.core.errors import InvalidValue

HEADER = "x-llmhost-cache"
TAG_HEADER = "x-llmhost-cache-tag"
SIMILARITY_HEADER = "x-llmhost-cache-similarity"
HEADERS = (HEADER, TAG_HEADER, "cache-control")
"""All that say it."""
WORDS = ("on", "off", "refresh", "only", "semantic")

_TAG = re.compile(r"[A-Za-z0-9._:/-]{1,64}")
_AGE = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    is_asked: bool = False
    """It says that it wants to take part."""
    reads: bool = True
    stores: bool = True
    is_only: bool = False
    is_semantic: bool = False
    """An answer to a question that is only alike will do, and its own may be given to such a one."""
    most_age_s: int | None = None
    tag: str = ""


NO_WISH = Wish()


def wish_of(headers: Mapping[str, str]) -> Wish:
    """Raises InvalidValue for words of our own header that there are not; of HTTP's, those are ignored."""
    word, control, tag = headers.get(HEADER), headers.get("cache-control"), headers.get(TAG_HEADER)
    if word is None and control is None and tag is None:
        return NO_WISH
    said = _directives(control or "")
    is_only = word == "only" or "only-if-cached" in said
    if word is not None and word not in WORDS:
        raise InvalidValue(
            f"The header {HEADER} is {word[:40]!r}; it is one of {', '.join(WORDS)}.", param=HEADER
        )
    if tag is not None and not _TAG.fullmatch(tag):
        raise InvalidValue(
            f"The header {TAG_HEADER} is up to 64 letters, digits and any of . _ : / -.",
            param=TAG_HEADER,
        )
    return Wish(
        is_asked=word in ("on", "refresh", "only", "semantic") or is_only,
        reads=word not in ("off", "refresh") and "no-cache" not in said and "no-store" not in said,
        stores=word != "off" and "no-store" not in said,
        is_only=is_only,
        is_semantic=word == "semantic",
        most_age_s=_age(said.get("max-age")),
        tag=tag or "",
    )


def _directives(control: str) -> dict[str, str]:
    parts = (part.strip().partition("=") for part in control.lower().split(","))
    return {name.strip(): value.strip().strip('"') for name, _, value in parts if name}


def _age(text: str | None) -> int | None:
    return int(text) if text is not None and _AGE.fullmatch(text) else None
