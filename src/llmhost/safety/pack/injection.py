"""Prompts that try to take a model over. Looked for in what users and tools wrote, not in an operator's own messages.

Words can always be put otherwise: these find what is copied from lists of known attempts, and no more is claimed. A
guard model reads what is meant.
"""

import re
from collections.abc import Iterator
from typing import Any

from llmhost.safety.pack.rule import Find, PackRule, Span, Trait, matches

MARKUP = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|system|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<<SYS>>",
    "[INST]",
    "[/INST]",
)
"""How templates mark whose turn it is."""


def _said(heads: tuple[str, ...], rest: str) -> Find:
    """Where one of these words begins what an expression goes on with, whatever their case."""
    pattern = re.compile(rf"\b(?:{'|'.join(heads)})\b(?:{rest})")

    def find(text: str, start: int) -> Iterator[Span]:
        lower = text.lower()
        if len(lower) != len(text):
            lower = text  # places would not fit; few letters are so
        for head in heads:
            at = lower.find(head, start)
            while at >= 0:
                if (match := pattern.match(lower, at)) is not None:
                    yield match.span()
                at = lower.find(head, at + 1)

    return find


IGNORE = ("ignore", "disregard", "forget", "override", "bypass")
REVEAL = (
    "reveal",
    "show",
    "print",
    "repeat",
    "output",
    "display",
    "leak",
    "disclose",
    "what is",
    "what are",
    "tell me",
)
MODES = tuple(f"{mode} mode" for mode in ("developer", "dan", "god", "debug", "sudo", "jailbreak"))
_GAP = r"[^.!?\n]{0,40}?"


def _rule(
    name: str, find: Find, *literals: str, and_literals: tuple[str, ...] = (), **more: Any
) -> PackRule:
    return PackRule(f"injection.{name}", find, literals, and_literals, is_for_output=False, **more)


INJECTION = (
    _rule(
        "ignore_instructions",
        _said(
            IGNORE,
            rf"{_GAP}\b(?:previous|prior|above|earlier|preceding|all|your|any|system|initial|original)\b"
            r"(?: \w{1,12}){0,3}? (?:instructions?|prompts?|rules|guidelines|directions|constraints|programming)\b",
        ),
        *IGNORE,
        and_literals=(
            *(" instruction", " prompt", " rules", " guideline"),
            *(" direction", " constraint", " programming"),
        ),
        is_folded=True,
    ),
    _rule(
        "reveal_prompt",
        _said(
            REVEAL,
            rf"{_GAP}\b(?:system|initial|hidden|secret|original|developer) (?:prompts?|instructions?|messages?)\b",
        ),
        *(" prompt", " instruction", " message"),
        and_literals=("system ", "initial ", "hidden ", "secret ", "original ", "developer "),
        is_folded=True,
    ),
    _rule(
        "role_override",
        _said(
            ("do anything now", *MODES, "you are now", "you are no longer"),
            r"(?<=ng now)|(?<=mode) (?:is )?(?:now )?(?:enabled|on|activated|active)\b"
            r"|(?<=now|ger) (?:dan|unrestricted|uncensored|jailbroken|bound|restricted|limited)\b",
        ),
        *(" mode", "anything now", "you are no"),
        is_folded=True,
    ),
    _rule(
        "chat_markup",
        matches("|".join(map(re.escape, MARKUP))),
        "<|",
        "INST]",
        "<<SYS",
        "<start_of_turn",
    ),
    _rule("hidden_text", matches("[\U000e0020-\U000e007f]{4,}"), trait=Trait.STRANGE),
    _rule(
        "exfiltration",
        matches(r"!\[[^\]\n]{0,80}\]\(https?://[^\s)]{1,200}?[?&][^\s)=]{1,40}=[^\s)]{0,80}?[{<]"),
        "](http",
    ),
)
