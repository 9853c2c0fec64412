"""Personal data: numbers, and addresses of e-mail."""

import re
from collections.abc import Iterator

from llmhost.safety.pack.numbers import cards, ibans, phones, social_security
from llmhost.safety.pack.rule import PackRule, Span, Trait

_LOCAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+\-']{0,63}")
_DOMAIN = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,60}[A-Za-z0-9])?(?:\.[A-Za-z0-9\-]{1,60}){0,4}\.[A-Za-z]{2,24}"
)


def emails(text: str, start: int) -> Iterator[Span]:
    """Looked for on both sides of each @, so that long words cost nothing."""
    at = text.find("@", start)
    while at >= 0:
        end = at + 1
        local = _LOCAL.match(text[max(at - 64, start) : at][::-1])
        domain = _DOMAIN.match(text, at + 1, at + 200)
        if local is not None and domain is not None:
            end = domain.end()
            yield at - local.end(), end
        at = text.find("@", end)


PERSONAL = (
    PackRule("pii.card", cards, trait=Trait.NUMBER),
    PackRule("pii.iban", ibans, trait=Trait.NUMBER),
    PackRule("pii.ssn", social_security, trait=Trait.NUMBER),
    PackRule("pii.phone", phones, trait=Trait.NUMBER),
    PackRule("pii.email", emails, ("@",), tail=re.compile(r"[A-Za-z0-9.\-]*")),
)
