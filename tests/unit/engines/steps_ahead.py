"""Steps that are launched before anybody has read what the last one drew, beside the same steps one by one."""

import json
from dataclasses import replace

from llmhost.core.grammar import GrammarSpec
from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Draw, Drawn, Row
from llmhost.engines.torch.runner import TorchRunner
from llmhost.text.words import WordTokenizer

_PENALTIES = Sampling(repetition_penalty=1.8, presence_penalty=1.0, frequency_penalty=1.0)
_WISHES = [
    _PENALTIES,
    Sampling(logit_bias=((9, 1.0),), bad_words=((4,), (9, 9))),
    Sampling(logprobs=2),
    replace(_PENALTIES, logprobs=0),
    Sampling(),
]
_TABLES = [[5, 2], [9, 1], [4, 8], [7, 3], [6, 10]]


def check_that_steps_ahead_draw_the_same(runner: TorchRunner, *, is_held: bool) -> None:
    """`runner` has at least 11 blocks and 10 tokens of vocabulary. With `is_held` one text is held to a form."""
    one_by_one, ahead = (Texts(runner, is_held=is_held) for _ in "12")

    expected = [one_by_one.take(runner.run(one_by_one.rows(0)))]
    for start in range(1, 4):
        expected.append(one_by_one.take(runner.run(one_by_one.rows(start))))

    flight, said = runner.launch(ahead.rows(0)), []
    flight.draw()
    for start in range(1, 4):
        after = runner.launch(ahead.rows(start, is_ahead=True))
        said.append(ahead.take(flight.land()))
        after.draw()
        flight = after
    said.append(ahead.take(flight.land()))
    assert said == expected


class Texts:
    """Five sequences that decode; the last one is held to a form, if that is asked for."""

    def __init__(self, runner: TorchRunner, *, is_held: bool) -> None:
        words = WordTokenizer(runner.facts.vocab_size)
        form = GrammarSpec(
            "choice", json.dumps([words.decode([7, 8, 9, 7]), words.decode([8] * 4)])
        )
        words.compile_grammar(form)
        self._grammar = words.grammar(form) if is_held else None
        self._texts = [[token] for token in (3, 4, 5, 6, 7)]

    def rows(self, start: int, *, is_ahead: bool = False) -> list[Row]:
        rows = [
            Row(number, [PENDING if is_ahead else text[-1]], start, table, wish, number, True)
            for number, (text, table, wish) in enumerate(
                zip(self._texts, _TABLES, _WISHES, strict=True)
            )
        ]
        rows = [
            row._replace(prompt_tokens=1, known=text)
            for row, text in zip(rows, self._texts, strict=True)
        ]
        return [*rows[:-1], rows[-1]._replace(grammar=self._grammar)]

    def take(self, drawn: list[Drawn]) -> list[Drawn]:
        for text, one in zip(self._texts, drawn, strict=True):
            text.append(_token(one))
        if self._grammar is not None:
            assert self._texts[-1][-1] in (7, 8, 9)
            self._grammar.accept(self._texts[-1][-1])
        return drawn


def _token(drawn: Drawn) -> int:
    if isinstance(drawn, Draw):
        (drawn,) = drawn.tokens
    assert isinstance(drawn, int)
    return drawn
