"""The sampler as it is where kernels draw, by Triton's interpreter: what it says must not depend on the way there."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llmhost.core.errors import EngineFailed
from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Draw, Drawn, GrammarState, Row
from llmhost.engines.drawing import Place
from llmhost.engines.masks import Masks
from llmhost.engines.torch import sampler
from llmhost.engines.torch.asked import asked_of
from llmhost.engines.torch.decode_steps import Draws
from llmhost.engines.torch.kernels import draw
from llmhost.engines.torch.lines import bar, bar_bits
from llmhost.engines.torch.logprobs import measure, read, report
from llmhost.engines.torch.sampler import Sampler, sample
from llmhost.engines.torch.shaping import Shaper
from llmhost.text.grammar import Closing

GREEDY = Sampling(temperature=0.0)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 60
LOGITS = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(3)).bfloat16() * 2


def by_kernels(logits: Tensor, rows: list[Row], masks: Masks | None = None) -> list[Drawn]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "KERNELS", DEVICE.type)
        patch.setattr(draw, "CHUNK_GROUPS", 1)
        return sample(logits.to(DEVICE), rows, masks)


def row(sampling: Sampling, *, seed: int = 0, position: int = 4, **more: Any) -> Row:
    known = [7, 9, 9, 13][:position]
    plain = Row(seed, known[-1:], position - 1, (0,), sampling, seed, wants_token=True)
    return plain._replace(known=known, prompt_tokens=1, **more)


def test_what_touches_logits_does_the_same_on_both_ways() -> None:
    kinds: list[Row] = [
        row(GREEDY),
        row(replace(GREEDY, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.2)),
        row(replace(GREEDY, logit_bias=((5, 9.0), (90, 100.0)))),
        row(replace(GREEDY, allowed_token_ids=(3, 4, 5, 700))),
        row(replace(GREEDY, bad_words=((int(LOGITS[4].float().argmax()),),))),
        row(GREEDY, barred=frozenset({int(LOGITS[5].float().argmax())}), barred_until=9),
        row(replace(GREEDY, logprobs=3)),
        row(replace(GREEDY, logprobs=0, allowed_token_ids=(8, 9))),
    ]
    here, there = sample(LOGITS, kinds), by_kernels(LOGITS, kinds)
    for one, other in zip(here, there, strict=True):
        if isinstance(one, Draw) and isinstance(other, Draw):
            assert one.tokens == other.tokens
            assert [r.rank for r in one.logprobs] == [r.rank for r in other.logprobs]
            assert [t for r in one.logprobs for t, _ in r.top] == [
                t for r in other.logprobs for t, _ in r.top
            ]
        else:
            assert one == other


def test_a_grammar_and_a_wish_to_end_do_the_same_on_both_ways() -> None:
    masks = Masks(np.array([[0b110, 0]], np.int32), {0: 0}, {0: Closing(0, 1, (6, 7))})
    held = row(GREEDY, grammar=cast(GrammarState, object()))
    assert by_kernels(LOGITS[:1], [held], masks) == sample(LOGITS[:1], [held], masks)


def test_a_row_draws_the_same_token_shaped_or_not() -> None:
    """A bias of nothing, or a report, changes the way and not the draw."""
    filters = (Sampling(), Sampling(top_k=9), Sampling(0.7, top_p=0.8), Sampling(min_p=0.1))
    plain = [row(one, seed=seed + 40) for seed, one in enumerate(filters)]
    shaped = [one._replace(sampling=replace(one.sampling, logit_bias=((1, 0.0),))) for one in plain]

    drawn = by_kernels(LOGITS[:4], plain)

    assert by_kernels(LOGITS[:4], shaped) == drawn
    assert by_kernels(LOGITS[:4], [plain[0], shaped[1], plain[2], shaped[3]]) == drawn
    assert [
        one.tokens[0] if isinstance(one, Draw) else one
        for one in by_kernels(
            LOGITS[:4],
            [one._replace(sampling=replace(one.sampling, logprobs=1)) for one in plain],
        )
    ] == drawn


def test_rows_fail_alone_and_for_their_own_reason() -> None:
    logits = LOGITS[:4].clone()
    logits[1, 3] = logits[2, 3] = float("nan")
    rows = [
        row(Sampling()),
        row(Sampling(logprobs=2), seed=1),
        row(replace(GREEDY, logit_bias=((1, 1.0),)), seed=2),
        row(replace(GREEDY, allowed_token_ids=(700,)), seed=3),
    ]

    fine, broken, shaped, empty = by_kernels(logits, rows)

    assert isinstance(fine, int)
    assert isinstance(broken, EngineFailed) and "sequence 1" in broken.message
    assert isinstance(shaped, EngineFailed) and "NaN" in shaped.message
    assert isinstance(empty, EngineFailed) and "allowed_token_ids" in empty.message


def test_a_row_with_guesses_says_what_rows_without_would_say() -> None:
    """The first guess is right, the second is not."""
    asked = Sampling(logprobs=1)
    plain = [row(asked, seed=5)._replace(start=3 + depth) for depth in range(3)]
    alone = [by_kernels(LOGITS[depth : depth + 1], [one])[0] for depth, one in enumerate(plain)]
    tokens = [one.tokens[0] for one in alone if isinstance(one, Draw)]
    guesses = (tokens[0], tokens[1] + 1)
    guessing = plain[0]._replace(tokens=(13, *guesses), drafts=2)

    [said, other] = by_kernels(LOGITS[:4], [guessing, row(GREEDY, seed=6)])

    assert isinstance(said, Draw)
    assert said.tokens == tuple(tokens[:2])
    assert [*said.logprobs] == [
        r for one in alone[:2] if isinstance(one, Draw) for r in one.logprobs
    ]
    assert other == int(LOGITS[3].float().argmax())


def test_reports_are_the_same_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, both zeros and barred tokens among them; cut into slices, and lines picked out."""
    logits = (LOGITS.float() * 2).round().to(torch.bfloat16)
    logits[:, 5] = -0.0
    logits[2, 10:] = float("-inf")
    tokens, tops = [5, 9, 3, 8, 0, 1, 2, 59], [0, 5, 20, 1, 60, 2, 0, 3]
    wanted = report(logits, tokens, tops)
    monkeypatch.setattr("llmhost.engines.torch.logprobs.SLICE_NUMBERS", 3 * VOCABULARY)
    for most in (0, 60):
        found = measure(logits, torch.arange(8), torch.tensor(tokens), most).numpy()
        for line, one in enumerate(found):
            got = read(one, tokens[line], tops[line] if most else 0)
            assert got.rank == wanted[line].rank
            assert got.logprob == pytest.approx(wanted[line].logprob, abs=1e-6)
            if most:
                assert [t for t, _ in got.top] == [t for t, _ in wanted[line].top]
                assert [v for _, v in got.top] == pytest.approx([v for _, v in wanted[line].top])


def test_packed_masks_bar_what_unpacked_ones_bar() -> None:
    numbers, words = torch.zeros(3, 70), np.array([[-5, 2**31 - 1, 9], [1, 0, -1]], np.int32)
    unpacked = np.unpackbits(words.view(np.uint8), axis=1, count=70, bitorder="little")
    wanted, found = numbers.clone(), numbers.clone()

    bar(wanted, [0, 2], unpacked == 0)
    bar_bits(found, torch.tensor([0, 2]), torch.from_numpy(words))

    assert torch.equal(found, wanted)


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=9),
    st.sampled_from([1.0, 1.6]),
    st.sampled_from([0.0, 0.75]),
    st.sampled_from([0.0, 0.3]),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple), max_size=5).map(tuple),
    st.data(),
)
def test_a_token_that_only_the_device_knows_counts_as_one_that_is_known(
    known: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    words: tuple[tuple[int, ...], ...],
    data: st.DataObject,
) -> None:
    sampling = Sampling(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        bad_words=words,
    )
    told = [
        Row(i, known[-1:], len(known) - 1, (0,), sampling, 0, wants_token=True)._replace(
            known=known[: len(known) - i], prompt_tokens=data.draw(st.integers(1, len(known) - i))
        )
        for i in range(2 if len(known) > 2 else 1)
    ]
    pending = [
        told[0]._replace(
            tokens=[PENDING],
            known=known[:-1],
            prompt_tokens=min(told[0].prompt_tokens, len(known) - 1),
        ),
        *told[1:],
    ]
    told[0] = told[0]._replace(prompt_tokens=pending[0].prompt_tokens)
    fed = torch.tensor([row.known[-1] for row in told], dtype=torch.int32)
    plain, ahead = (LOGITS[: len(told), :10].float().contiguous() for _ in "12")

    Shaper().shape(plain, [Place(row) for row in told], Masks())
    Shaper().shape(ahead, [Place(row) for row in pending], Masks(), fed)

    assert ahead.equal(plain)


def test_what_is_drawn_ahead_is_what_would_be_drawn() -> None:
    """Rows that only temperature shapes have been drawn before, by the same kernel."""
    penalties = Sampling(repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.2)
    rows = [
        row(Sampling()),
        row(penalties, seed=1),
        row(replace(penalties, logprobs=2), seed=2),
        row(Sampling(logprobs=3), seed=3),
        row(replace(GREEDY, allowed_token_ids=(700,)), seed=4),
        row(replace(penalties, logprobs=1), seed=5),
    ]
    logits = LOGITS[: len(rows)].clone()
    logits[5, 3] = float("nan")
    expected = by_kernels(logits, rows)
    pending = [one._replace(tokens=[PENDING], known=one.known[:-1]) for one in rows]
    fed = torch.tensor([one.known[-1] for one in rows], dtype=torch.int32)

    drawn = torch.zeros(20, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "CHUNK_GROUPS", 1)
        draw.draw_tokens(
            logits,
            asked_of([Place(one) for one in pending], DEVICE),
            drawn,
            draw.DrawRoom(8, VOCABULARY, DEVICE),
        )
        reports = Sampler().draw_ahead(logits, pending, range(1, len(rows)), fed, drawn)
    landed = Draws(pending, drawn, reports).land()

    assert [str(one) for one in landed] == [str(one) for one in expected]
    assert [isinstance(one, EngineFailed) for one in landed] == [False] * 4 + [True] * 2
