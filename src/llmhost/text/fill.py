"""Filling in the middle: the tokens by which models of code are asked for what is missing between two texts.

Which of them a model was taught can't be seen; that its vocabulary has them is what there is to go by.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmhost.core.ports import FillMarks


@dataclass(frozen=True, slots=True)
class _Spelling:
    """How one family of models spells its tokens."""

    prefix: str
    suffix: str
    middle: str | None
    ends: tuple[str, ...] = ()
    is_joined: bool = False


SPELLINGS = (
    _Spelling(  # Qwen's coders, CodeGemma, Granite from 3.3 on
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    _Spelling(  # StarCoder, older Granites
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        ("<fim_pad>", "<reponame>", "<repo_name>", "<file_sep>", "<filename>"),
    ),
    _Spelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>",)),  # SantaCoder
    _Spelling("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",), is_joined=True),
    _Spelling("<PRE>", "<SUF>", "<MID>", ("<EOT>",), is_joined=True),  # CodeLlama as well
    _Spelling(  # DeepSeek's coders, in their wide bars and low blocks
        "<\uff5cfim\u2581begin\uff5c>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<\uff5cfim\u2581end\uff5c>",
    ),
    _Spelling("[PREFIX]", "[SUFFIX]", None, is_joined=True),  # Codestral
)


def fill_marks(id_of: Callable[[str], int | None]) -> FillMarks | None:
    """Those of the first family all of whose tokens are in the vocabulary; None where there are none."""
    for spelling in SPELLINGS:
        prefix, suffix = id_of(spelling.prefix), id_of(spelling.suffix)
        middle = None if spelling.middle is None else id_of(spelling.middle)
        if prefix is None or suffix is None or (middle is None and spelling.middle is not None):
            continue
        known = [token for text in spelling.ends if (token := id_of(text)) is not None]
        marks = {token for token in (prefix, suffix, middle) if token is not None}
        ends = frozenset(known) | marks
        return FillMarks(prefix, suffix, middle, ends, spelling.is_joined)
    return None
