"""Whether two texts that are alike ask for the same. Pure.

Vectors see what a text is about, and hardly that it has another number, a "not" more, or two names the other way
round. This looks at just that, in the texts themselves. It may say no to what would have been the same, and then a
request runs; it is made for English, and other scripts are always refused.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

FACTS_FORM = 2
"""Goes up with what is found in the same text: facts of another form can't be compared."""
MOST_CHARS = 1_000
"""Longer texts differ in too little to be told apart."""
LEAST_WORDS = 2
"""Of content; in fewer there is nothing to go by."""
LONGEST_RATIO = 2.0
"""Of the words of the longer text to those of the shorter one."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[a-z]*\d[a-z\d]*", re.IGNORECASE)
_NUMBER = re.compile(r"(?<!\w)[-+]?\d+(?:[.,:/-]\d+)*(?:st|nd|rd|th)?", re.IGNORECASE)
_UNIT = re.compile(r"\d\s*([a-z%°\"']+)", re.IGNORECASE)
_QUOTED = re.compile(r"\"([^\"]*)\"|`([^`]*)`|(?<!\w)'([^']*)'(?!\w)|“([^”]*)”|«([^»]*)»")
_NAME = re.compile(r"://|\w[._/\\@:#-]+\w|_|[a-z][A-Z]|\d|[A-Z]{2}")
"""In URLs, paths, addresses and identifiers, which are told apart by every letter."""
_ENDS = ".,;:!?()'\"`“”«»"
_SYMBOLS = re.compile(r"[^\w\s.,;:!?'\"()“”«»`-]|(?<=\s)-(?=[\s\d])")
_ACCENTED = re.compile(r"[^\x00-\x7f]")
_LATIN = re.compile("[\u00c0-\u024f\u2010-\u2027\u00a0-\u00bf\u20ac]")


def _list(text: str) -> list[str]:
    return text.split()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEGATIONS = _words(
    "not no never none nobody nothing neither nor without cannot except unless nowhere hardly barely lack lacks"
    " avoid exclude excluding stop nicht kein keine keinen nie ohne pas jamais sans nunca sin ni non"
)
_COMPARISONS = _words(
    "more less most least than fewer fewest better best worse worst larger largest bigger biggest smaller smallest"
    " higher highest lower lowest older oldest newer newest earlier earliest later latest longer longest shorter"
    " shortest faster fastest slower slowest cheaper cheapest before after until since above below over under between"
    " within beyond minimum maximum min max only all any every each some both either same different equal as if when"
    " while first last from in into on onto off out up down by versus vs and or but again once twice"
)
_COUNTED = _list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen"
)
_NUMBER_WORDS = _words(
    "twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million millions"
    " billion billions trillion dozen half third quarter double triple second fourth fifth sixth seventh eighth"
    " ninth tenth pair couple several few many"
).union(_COUNTED)
_TIMES = _words(
    "january february march april may june july august september october november december jan feb mar apr jun jul"
    " aug sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday today tomorrow yesterday"
    " tonight now this next previous current morning noon afternoon evening night midnight am pm daily weekly monthly"
    " yearly annual"
)
_UNITS = _words(
    "usd eur gbp jpy chf dollar euro pound yen franc cent percent km kilometer kilometre m meter metre cm mm mile yard"
    " foot feet inch kg kilogram g gram mg ton tonne ounce oz lb liter litre l ml gallon pint hour minute min sec day"
    " week month year decade century celsius fahrenheit kelvin degree watt kw kwh volt amp hz khz mhz ghz byte bit kb "
    " mb gb tb kib mib gib mph kmh acre hectare"
)
_ASKS = _words("who whom whose what which where when why how")
_MODES = _words(
    "can could should must may might will would shall was were did had been is are does do has have being be am"
)
_PERSONS = _words(
    "i we he she they it my our his her their its you your him them us mine ours yours"
)
_FILLERS = _words(
    "a an the of to for at about with please tell me explain give show let know just want wanna like need so then"
    " there that these those kindly hi hello hey thanks thank describe say also"
)
_POLITE = re.compile(
    r"\b(?:(?:can|could|would|will) you(?: please)?|i(?: would|'d) like(?: you)? to|i want(?: you)? to|do you know"
    r"|please)\b"
)
_FUNCTION = _ASKS | _MODES | _PERSONS | _FILLERS
_CONTRACTED = ((re.compile(r"\bcan't\b"), "cannot"), (re.compile(r"n't\b"), " not"))
_OPPOSITES = _list(
    "increase/decrease raise/lower rise/fall buy/sell approve/deny accept/reject allow/block allow/forbid permit/ban"
    " open/close start/end begin/end add/remove create/delete import/export encrypt/decrypt upload/download win/lose"
    " hot/cold safe/dangerous pro/con benefit/risk send/receive lend/borrow deposit/withdraw credit/debit male/female"
    " left/right north/south east/west cheap/expensive good/bad big/small large/small old/new old/young fast/slow"
    " high/low long/short early/late true/false pass/fail grant/revoke hire/fire push/pull input/output"
    " public/private profit/loss gain/lose push/pop lock/free wet/dry strong/weak rich/poor hard/easy arrive/depart"
    " arrival/departure cause/effect before/after include/exclude show/hide attack/defend love/hate"
)
_OPPOSITE: dict[str, set[str]] = {}
for _one, _other in (both.split("/") for both in _OPPOSITES):
    _OPPOSITE.setdefault(_one, set()).add(_other)
    _OPPOSITE.setdefault(_other, set()).add(_one)
_OPPOSED = re.compile(r"^(?:un|in|im|il|ir|dis|non|anti|de|mis|over|under|pre|post)(?=[a-z]{3})")


@dataclass(frozen=True, slots=True)
class Facts:
    """What has to agree of a text."""

    exact: tuple[tuple[str, ...], ...]
    """In this order and these words: numbers, units, times, quotes, names, signs, negations, comparisons, asks."""
    verbs: tuple[tuple[str, int], ...]
    """How often auxiliaries and persons come, in the order of the alphabet."""
    entities: frozenset[str]
    """Words with a capital letter, without it."""
    words: tuple[str, ...]
    """Of content, in their order."""
    length: int
    """Words in all."""


def facts_of(text: str) -> Facts | None:
    """None for a text that can't be told apart from others: too long, too short, or in another script."""
    if len(text) > MOST_CHARS or any(not _LATIN.match(c) for c in _ACCENTED.findall(text)):
        return None
    plain = text.replace("\u2019", "'")
    low = plain.lower()
    for pattern, meant in _CONTRACTED:
        low = pattern.sub(meant, low)
    low = _POLITE.sub(" ", low)
    said = [word.removesuffix("'s") for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", low)]
    content = tuple(_stem(word) for word in said if word not in _FUNCTION)
    if len(content) < LEAST_WORDS:
        return None
    numbers = tuple(_number(word) for word in said if word in _NUMBER_WORDS)
    exact = (
        tuple(found.replace(",", "") for found in _NUMBER.findall(low)),
        numbers,
        tuple(_stem(unit) for unit in _UNIT.findall(low)),
        tuple(word for word in said if _stem(word) in _UNITS or word in _UNITS),
        tuple(word for word in said if word in _TIMES),
        tuple("".join(found) for found in _QUOTED.findall(plain)),
        tuple(name.strip(_ENDS) for name in plain.split() if _NAME.search(name)),
        tuple(_SYMBOLS.findall(plain)),
        tuple(word for word in said if word in _NEGATIONS),
        tuple(word for word in said if word in _COMPARISONS),
        tuple(word for word in said if word in _ASKS),
    )
    verbs = Counter(word for word in said if word in _MODES or word in _PERSONS)
    capital = (
        w.removesuffix("'s").lower()
        for w in re.findall(r"[^\W\d_]+(?:'s)?", plain)
        if w[0].isupper()
    )
    entities = frozenset(
        _stem(word) for word in capital if word not in _FUNCTION and word not in _COMPARISONS
    )
    return Facts(exact, tuple(sorted(verbs.items())), entities, content, len(said))


def ask_the_same(one: Facts, other: Facts) -> bool:
    """Whether nothing in the texts tells them apart. Symmetric."""
    return (
        one.exact == other.exact
        and one.verbs == other.verbs
        and max(one.length, other.length) <= LONGEST_RATIO * min(one.length, other.length)
        and one.entities <= set(other.words) | other.entities
        and other.entities <= set(one.words) | one.entities
        and _has_the_same_order(one.words, other.words)
        and not _is_swapped(one.words, other.words)
    )


def say_the_same(one: str, other: str) -> bool:
    """Whether two answers have the same numbers and as many negations: what vectors don't see."""
    return _figures(one) == _figures(other)


def are_equal(one: str, other: str) -> bool:
    """But for spaces and capitals."""
    return one.casefold().split() == other.casefold().split()


def _figures(text: str) -> tuple[list[str], int]:
    low = text.lower().replace("\u2019", "'")
    words = _WORD.findall(low)
    negations = sum(word in _NEGATIONS or word.endswith("n't") for word in words)
    numbers = [found.replace(",", "") for found in _NUMBER.findall(low)]
    return numbers + [_number(word) for word in words if word in _NUMBER_WORDS], negations


def _has_the_same_order(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Words that both have come in one order, and as often: "is A larger than B" is not the other way round."""
    shared = set(one) & set(other)
    return [word for word in one if word in shared] == [word for word in other if word in shared]


def _is_swapped(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Between words that both have, as many others stand in one as in the other: as alike as can be, and another
    question. So is a word that is the other's opposite, wherever it stands. Both have the same order."""
    old, new = set(one) - set(other), set(other) - set(one)
    if any(a == b > 0 for a, b in zip(_gaps(one, old), _gaps(other, new), strict=True)):
        return True
    return _are_opposed(old, new) or _are_opposed(new, old)


def _gaps(words: tuple[str, ...], own: set[str]) -> list[int]:
    """How many words of its own a text has before, between and after those that it shares."""
    gaps = [0]
    for word in words:
        if word in own:
            gaps[-1] += 1
        else:
            gaps.append(0)
    return gaps


def _are_opposed(old: set[str], new: set[str]) -> bool:
    opposites = {_OPPOSED.sub("", word) for word in old} - old
    opposites.update(another for word in old for another in _OPPOSITE.get(word, ()))
    return not opposites.isdisjoint(new)


def _number(word: str) -> str:
    return str(_COUNTED.index(word)) if word in _COUNTED else word


@lru_cache(maxsize=4096)
def _stem(word: str) -> str:
    """Plurals and the like without their ends."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
