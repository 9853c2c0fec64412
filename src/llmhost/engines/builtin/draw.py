"""Values drawn at random for `drills.py`: numbers, names in several scripts, places, and words to name tools with.

A share of them is never drawn for training, so that what the model has learnt can be measured on values that it never
saw. Knows nothing of the conversations that they stand in.
"""

import random
from collections.abc import Callable
from zlib import crc32

from llmhost.engines.builtin import variety

HELD_OUT_OF = 8
"""One value in so many is kept for measuring."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


QUALITIES = _words(
    "secret hidden special custom simple fast local daily remote inner blue smart lucky strange silent golden broken"
    " double first last next final basic central native public shared weekly great small quick open"
)
WORKINGS = _words(
    "function formula filter rule index score rate level value step number method machine trick shift scale"
)
GETS = _words("get fetch find check read show load lookup query")
MAKES = _words("create add register open save new make insert enter store")
KNOWN_OF_PLACES = _words(
    "weather weather time traffic forecast temperature population news humidity wind sunrise holiday events rain map"
    " hotels prices altitude mayor history"
)
PLACES = _words("location location place town city where area region site country address spot")
INPUTS = _words(
    "input x n value number count size amount id code key level query limit index arg minutes total"
)
THINGS = _words(
    "user project ticket order account team product contact company supplier partner client room event school shop"
    " member group folder customer station ship garden film book server"
)
NAMED = _words("name title label customer_name user_name full_name display_name company_name")
DETAILS = _words("description details note comment summary text info about")
SORTS = _words(
    "tall old new Chinese German Indian Brazilian French famous quiet busy family music food travel"
    " sports tech"
)
STATES = _words(
    "sunny cloudy rainy busy quiet open closed high low ready full empty late early green red mild"
)
TOPICS = _words(
    "dogs birds trains rivers robots bread winter schools ships music tea horses doctors rain mountains clocks shoes"
    " gardens pirates numbers bees fish lawyers computers snow lamps cows spiders football castles"
)
TELLS = _words("joke story fact riddle rhyme poem tip question")
KEYS = _words(
    "title body answer question start end first second topic line text hint reason source name detail opening ending"
    " intro result teaser lesson author moral verse word scene note setting twist"
)
FIRST = _words(
    "ka mo ri ta lu ven sor bel dan fi go har jin ko lam ne or pa qui ras sa tor ul vi wes ya zo an el in"
)
LATER = _words(
    "ra no li ton mar der sa vik ne lo ria ber dan go lin ta nor ks ell is an os um et ville stad ham ia"
)
SOUGHT = _words("query text words q term search")
MOST = _words("limit count top")
BEFORE = _words("San New Port Santa Fort Saint Lake Mount Old El Los Upper North")
STREETS = _words("Group Bakery School Club Works Limited Hotel Garden Labs Foods")


class Draw:
    """Values drawn at random: those that training sees, or those that it never does."""

    def __init__(self, rng: random.Random, measured: bool = False) -> None:
        self.rng = rng
        self._measured = measured

    def number(self) -> int:
        """Of one to four digits, each as often as the others; those of one or two are never held out."""
        digits = self.rng.choice((1, 1, 2, 2, 3, 3, 4) if not self._measured else (3, 4))
        return int(
            self._of(lambda: str(self.rng.randrange(10 ** (digits - 1) % 10**digits, 10**digits)))
        )

    def name(self) -> str:
        """A person's, firm's or thing's name in some script: one word or two, never a real one but by chance."""
        return self._of(lambda: self.rng.choice(_NAMES)(self.rng))

    def latin(self) -> str:
        return self._of(lambda: _latin(self.rng))

    def place(self) -> str:
        return self._of(lambda: _place(self.rng))

    def identifier(self, *parts: tuple[str, ...]) -> str:
        """A word of each list, as programs join them."""
        return self._of(lambda: "_".join(map(self.rng.choice, parts)))

    def _of(self, draw: Callable[[], str]) -> str:
        while True:
            value = draw()
            if len(value) < 3 or held_out(value) == self._measured:
                return value


def held_out(value: str) -> bool:
    """Whether a value of three characters or more is kept from training."""
    return crc32(value.encode()) % HELD_OUT_OF == 0


def _latin(rng: random.Random) -> str:
    word = rng.choice(FIRST) + "".join(rng.choices(LATER, k=rng.choice((1, 1, 2))))
    if rng.random() < 0.15:
        word = word.replace("a", rng.choice("äáàå")).replace("o", rng.choice("öóøõ"))
    return word.capitalize()


def two_words(rng: random.Random) -> str:
    return f"{_latin(rng)} {_latin(rng) if rng.random() < 0.6 else rng.choice(STREETS)}"


def _place(rng: random.Random) -> str:
    place = rng.choice(variety.CITIES) if rng.random() < 0.2 else _latin(rng)
    if rng.random() < 0.4:
        place = f"{rng.choice(BEFORE)} {_latin(rng)}"
    if rng.random() < 0.35:
        place += f", {''.join(rng.choices('ACDFIKLMNOTVWXYZ', k=2))}"
    return place


def _letters(first: int, last: int, least: int, most: int) -> Callable[[random.Random], str]:
    def name(rng: random.Random) -> str:
        return "".join(chr(rng.randint(first, last)) for _ in range(rng.randint(least, most)))

    return name


_HAN = _letters(0x4E00, 0x9FA5, 2, 5)
_KANA = _letters(0x3041, 0x3093, 2, 6)
_NAMES: tuple[Callable[[random.Random], str], ...] = (
    _latin,
    _latin,
    two_words,
    two_words,
    _HAN,
    _HAN,
    _HAN,
    _KANA,
    lambda rng: _KANA(rng) + _HAN(rng),
    _letters(0xAC00, 0xD7A3, 2, 4),
    _letters(0x0430, 0x044F, 3, 7),
    _letters(0x03B1, 0x03C9, 3, 7),
    _letters(0x0627, 0x063A, 3, 6),
)
