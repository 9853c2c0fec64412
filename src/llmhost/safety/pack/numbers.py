"""Personal data that is numbers: cards by Luhn's digit, IBANs by their remainder, social security and phone numbers."""

import re
from collections.abc import Iterator

from llmhost.safety.pack.rule import Span, is_letter

_RUN = re.compile(r"\d(?:[ \-]?\d){12,}")
_GROUP = re.compile(r"\d+")
_LEAST, _MOST = 13, 19
"""Digits of a card."""

_SSN = re.compile(
    r"(?<![\d\-])(?!000|666|9)\d{3}([ \-])(?!00)\d{2}\1(?!0000)\d{4}(?![\d\-])", re.ASCII
)
_PHONE = re.compile(
    r"\+\d(?:[ ().\-/]{0,2}\d){7,14}(?!\d)"
    r"|(?<![\w+.\-])(?:1[ .\-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .\-])[2-9]\d{2}[ .\-]\d{4}(?![\d\-])",
    re.ASCII,
)
_IBAN = re.compile(r"[A-Za-z]{2}\d{2}(?:[ \-]?[A-Za-z0-9]){11,30}", re.ASCII)

_COUNTRIES = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
IBAN_CHARS = {country: size for size, all_of in _COUNTRIES.items() for country in all_of.split()}
"""How long an IBAN of each country is, without its spaces."""


def cards(text: str, start: int) -> Iterator[Span]:
    """Numbers of cards: a beginning that is given out, and Luhn's digit. Groups may have a space or dash between."""
    for run in _RUN.finditer(text, start):
        at = run.start()
        groups = [match.span() for match in _GROUP.finditer(text, *run.span())]
        if at > 0 and text[at - 1].isdigit():
            groups = groups[1:]  # the rest of a longer one
        yield from _cards_of(text, groups)


def _cards_of(text: str, groups: list[Span]) -> Iterator[Span]:
    first = 0
    while first < len(groups):
        digits, found = "", None
        for last in range(first, len(groups)):
            digits += text[slice(*groups[last])]
            if len(digits) > _MOST:
                break
            if len(digits) >= _LEAST and _is_given_out(digits) and luhn(digits):
                found = last
                break
        if found is None:
            first += 1
        else:
            yield groups[first][0], groups[found][1]
            first = found + 1


def _is_given_out(digits: str) -> bool:
    """Whether a network's cards begin so and are so long."""
    head, size = int(digits[:4]), len(digits)
    if digits[0] == "4":
        return size in (13, 16, 19)
    if 5100 <= head <= 5599 or 2221 <= head <= 2720:
        return size == 16
    if digits[:2] in ("34", "37"):
        return size == 15
    if digits[:2] in ("30", "36", "38", "39"):
        return size in (14, 16)
    return size >= 16 and (digits[0] == "6" or 3528 <= head <= 3589)


_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(digits: str) -> bool:
    total = sum(map(int, digits[-1::-2])) + sum(_DOUBLED[int(digit)] for digit in digits[-2::-2])
    return total % 10 == 0


def ibans(text: str, start: int) -> Iterator[Span]:
    at = start
    while (match := _IBAN.search(text, at)) is not None:
        at = match.start() + 1
        begin = match.start()
        size = IBAN_CHARS.get(text[begin : begin + 2].upper())
        if size is None or (begin > 0 and is_letter(text[begin - 1])):
            continue
        end = _end_of(text, begin, size)
        if end is None or (end < len(text) and is_letter(text[end])):
            continue
        letters = "".join(filter(is_letter, text[begin:end])).upper()
        if int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1:
            yield begin, end
            at = end


def _end_of(text: str, begin: int, size: int) -> int | None:
    """Where so many letters and digits end."""
    for at in range(begin, min(begin + 2 * size, len(text))):
        size -= is_letter(text[at])
        if not size:
            return at + 1
    return None


def social_security(text: str, start: int) -> Iterator[Span]:
    """Of the United States, as it is written: with dashes or spaces."""
    return (match.span() for match in _SSN.finditer(text, start))


def phones(text: str, start: int) -> Iterator[Span]:
    """With a plus and a country's number, or as in North America."""
    return (match.span() for match in _PHONE.finditer(text, start))
