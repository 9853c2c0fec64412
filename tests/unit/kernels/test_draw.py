"""Draws by the kernels, by Triton's interpreter: which tokens stay in, by float64, and how often each is drawn."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from tests.unit.engines.reference_sampling import distance
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.drawing import Place
from llmhost.engines.torch.asked import DrawAsked, asked_of, pack
from llmhost.engines.torch.kernels import draw, draw_kernels
from llmhost.engines.torch.kernels.draw import DrawRoom, draw_tokens

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GREEDY = Sampling(temperature=0.0)
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter computes what a mask leaves out too."""
    monkeypatch.setattr(draw, "CHUNK_GROUPS", 4)


def place(sampling: Sampling, seed: int = 0, position: int = 1) -> Place:
    return Place(Row(0, (0,), position - 1, (0,), sampling, seed, wants_token=True))


def drawn(logits: Tensor, places: Sequence[Place]) -> tuple[list[int], list[float]]:
    """The tokens, and the least logits that stayed in on lines that filter."""
    room = DrawRoom(*logits.shape, DEVICE)
    out = torch.empty(len(places), dtype=torch.int32, device=DEVICE)
    draw_tokens(logits, asked_of(places, DEVICE), out, room)
    return out.tolist(), room.edges[:, 0].tolist()


def random_logits(lines: int, vocabulary: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(lines, vocabulary, generator=generator) * 2).to(DEVICE)


def left_in(logits: Tensor, asked: Sampling) -> Tensor:
    """Which tokens of a line its filters leave in, by their definition, in float64."""
    numbers = logits.double()
    shares = (numbers / asked.temperature).softmax(-1)
    kept = numbers > -INFINITE
    if asked.top_k and asked.top_k < len(numbers):
        kept &= numbers >= numbers.topk(asked.top_k).values[-1]
    if asked.top_p < 1.0:
        order = torch.where(kept, numbers, -INFINITE).argsort(descending=True)
        inside = torch.where(kept, shares, 0.0)[order]
        before = inside.cumsum(-1) - inside
        size = max(1, int((before < asked.top_p * inside.sum()).sum()))
        kept &= numbers >= numbers[order[size - 1]]
    return kept & (shares >= asked.min_p * shares.max())


FILTERS = [
    Sampling(top_k=1),
    Sampling(top_k=7, temperature=0.3),
    Sampling(top_k=285),
    Sampling(top_p=0.9),
    Sampling(top_p=0.9, temperature=6.0),
    Sampling(top_p=1e-6),
    Sampling(min_p=0.1),
    Sampling(min_p=1.0),
    Sampling(top_k=40, top_p=0.7, min_p=0.05),
    Sampling(top_k=3, top_p=0.9999, min_p=1e-4),
]


def test_exactly_those_tokens_stay_in_that_the_filters_leave() -> None:
    logits = random_logits(len(FILTERS), 300, seed=4)

    tokens, edges = drawn(logits, [place(asked) for asked in FILTERS])

    for line, asked, token, edge in zip(logits, FILTERS, tokens, edges, strict=True):
        kept = left_in(line, asked)
        assert torch.equal(line >= edge, kept), asked
        assert kept[token]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ties_and_barred_tokens_change_nothing_in_what_stays_in(dtype: torch.dtype) -> None:
    """Few values, both zeros among them, and many tokens that are barred."""
    logits = (random_logits(len(FILTERS), 290) * 2).round() / 2
    logits[:, ::3] = -INFINITE
    logits[:, 1] = -0.0
    logits[0, 1:] = -INFINITE  # nothing but one token
    logits[0, 0] = -3.0
    logits = logits.to(dtype)

    tokens, edges = drawn(logits, [place(asked) for asked in FILTERS])

    for line, asked, token, edge in zip(logits, FILTERS, tokens, edges, strict=True):
        kept = left_in(line, asked)
        assert torch.equal((line >= edge) & (line > -INFINITE), kept), asked
        assert kept[token]


def test_a_nucleus_wider_than_the_first_groups_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "NUCLEUS_GROUPS", 2)
    logits = random_logits(3, 900, seed=6)
    logits[1] = torch.linspace(0.0, 0.5, 900)
    logits = logits.bfloat16()
    asked = [Sampling(top_p=0.6), Sampling(top_p=0.95), Sampling(top_p=0.99, min_p=0.02)]

    _, edges = drawn(logits, [place(one) for one in asked])

    for line, one, edge in zip(logits, asked, edges, strict=True):
        assert torch.equal(line.float() >= edge, left_in(line, one)), one


def test_a_top_k_over_the_number_of_groups_is_exact_too() -> None:
    """Those groups alone are read that may hold one of the best, or all of them."""
    logits = random_logits(3, 1100, seed=7).bfloat16()
    logits[2, 500:560] = 9.0
    asked = [Sampling(top_k=5), Sampling(top_k=200), Sampling(top_k=30)]

    _, edges = drawn(logits, [place(one) for one in asked])

    assert edges == [
        float(line.topk(one.top_k or 0).values[-1]) for line, one in zip(logits, asked, strict=True)
    ]


def test_temperature_zero_takes_the_first_of_the_largest() -> None:
    logits = random_logits(4, 2500)
    logits[:, 2100] = logits[:, 2300] = 50.0
    logits[3, 7] = 50.0
    filters = [GREEDY, Sampling(temperature=0.0, top_k=2, top_p=0.5), GREEDY, GREEDY]
    assert drawn(logits, [place(one) for one in filters])[0] == [2100, 2100, 2100, 7]


def test_a_tiny_temperature_is_as_good_as_greedy() -> None:
    logits = random_logits(4, 50).bfloat16()
    kinds = [Sampling(1e-4), Sampling(1e-30), Sampling(1e-300), Sampling(1e-30, top_p=0.9)]
    tokens, _ = drawn(logits, [place(asked, seed) for seed, asked in enumerate(kinds)])
    assert tokens == logits.float().argmax(-1).tolist()


def test_a_line_that_holds_no_numbers_is_told_and_spoils_no_other() -> None:
    kinds = [GREEDY, Sampling(), Sampling(top_k=3, top_p=0.9)]
    logits = random_logits(12, 2100).bfloat16()
    logits[3:6, 2099] = NAN
    logits[6:9, 5] = INFINITE
    logits[9:] = -INFINITE
    logits[0, 1:] = -INFINITE

    tokens, _ = drawn(logits, [place(asked) for asked in kinds * 4])

    assert tokens[0] == 0
    assert all(0 <= token < 2100 for token in tokens[:3])
    assert tokens[3:] == [-1] * 9


def test_a_draw_depends_on_neither_the_batch_nor_the_line_nor_the_type_of_its_logits() -> None:
    kinds = [Sampling(), Sampling(top_k=9), GREEDY]
    logits = random_logits(3, 2200).bfloat16()
    places = [place(one, seed=2**62 + i, position=i + 9) for i, one in enumerate(kinds)]

    together, _ = drawn(logits, places)

    order = [1, 2, 0]
    assert drawn(logits[order], [places[i] for i in order])[0] == [together[i] for i in order]
    assert drawn(logits[:1].float(), places[:1])[0] == together[:1]


def test_a_draw_does_not_depend_on_what_stands_behind_its_line() -> None:
    wide = random_logits(2, 400).bfloat16()
    line = wide[:, :333]
    places = [place(Sampling(), 5), place(Sampling(top_p=0.7), 6)]
    assert drawn(line, places)[0] == drawn(line.contiguous(), places)[0]


def test_a_refilled_room_of_a_longer_step_draws_the_same() -> None:
    logits = random_logits(2, 300)
    places = [place(Sampling(), 1), place(Sampling(0.5), 2)]
    room, out = DrawRoom(8, 300, DEVICE), torch.full((8,), 7, dtype=torch.int32, device=DEVICE)
    asked = DrawAsked.greedy(8, DEVICE)

    draw_tokens(logits, asked, out, room)
    assert out[:2].tolist() == logits.argmax(-1).tolist()
    asked.packed.copy_(pack(places, 8))
    draw_tokens(logits, asked, out, room)

    assert out.tolist() == [*drawn(logits, places)[0], *[7] * 6]


@triton.jit
def race(logits, seeds, out, count, vocabulary, LINES: tl.constexpr, TOKENS: tl.constexpr):  # noqa: N803
    """The race of many seeds over the same line at once."""
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    tokens = tl.arange(0, TOKENS)
    x = tl.load(logits + tokens, mask=tokens < vocabulary, other=float("-inf"))
    first, second = draw_kernels._row_keys(tl.load(seeds + line), tl.load(seeds + count + line))
    times = draw_kernels._arrival(
        x[None, :],
        tl.max(x, 0),
        draw_kernels._scale(1.0),
        tokens[None, :],
        first[:, None],
        second[:, None],
    )
    tl.store(out + line, tl.argmin(times, 1))


def winners(logits: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    count, vocabulary = len(seeds), len(logits)
    out = torch.empty(count, dtype=torch.int32, device=DEVICE)
    room = triton.next_power_of_2(vocabulary)
    lines = min(count, 64 if DEVICE.type == "cuda" else 2**13)
    race[(count // lines,)](
        logits.to(DEVICE),
        torch.cat([seeds, positions]).to(DEVICE),
        out,
        count,
        vocabulary,
        lines,
        room,
    )
    return out


@pytest.mark.parametrize(
    ("seeds", "positions"),
    [
        (torch.arange(2**15), torch.full((2**15,), 77)),
        (torch.full((2**15,), 2**63 - 5), torch.arange(2**15)),
        (torch.arange(2**15) << 40, torch.arange(2**15)),
    ],
)
def test_draws_follow_the_softmax_over_seeds_and_over_positions(
    seeds: Tensor, positions: Tensor
) -> None:
    logits = random_logits(1, 50, seed=2)[0] * 0.7
    logits[3] = -INFINITE
    tokens = winners(logits, seeds, positions)
    expected = logits.double().softmax(-1).cpu().numpy()
    assert abs(distance(tokens.tolist(), expected)[0]) < 4


def test_draws_of_neighbouring_seeds_and_positions_have_nothing_to_do_with_each_other() -> None:
    logits = torch.zeros(8)
    seeds = torch.arange(2**14)
    here = winners(logits, seeds, torch.full_like(seeds, 10))
    for there in (
        winners(logits, seeds, torch.full_like(seeds, 11)),
        winners(logits, seeds + 1, torch.full_like(seeds, 10)),
        winners(logits, seeds + 1, torch.full_like(seeds, 9)),
    ):
        pairs = (here * 8 + there).tolist()
        assert abs(distance(pairs, np.full(64, 1 / 64))[0]) < 4


def test_rare_tokens_win_as_often_as_they_should() -> None:
    """One token in 4,000 each, beside one that has nearly all: coarse numbers would show."""
    logits = torch.full((33,), -8.3)
    logits[32] = 0.0
    seeds = torch.arange(2**17)
    tokens = winners(logits, seeds, seeds * 0)
    assert abs(distance(tokens.tolist(), logits.double().softmax(-1).cpu().numpy())[0]) < 4


def test_the_launches_hold_the_race_that_was_looked_at_here() -> None:
    logits = random_logits(1, 50, seed=2).expand(16, -1)
    seeds = torch.arange(16)
    tokens, _ = drawn(logits, [place(Sampling(), seed) for seed in range(16)])
    assert tokens == winners(logits[0], seeds, torch.ones_like(seeds)).tolist()


def test_a_filtered_race_is_the_race_of_those_that_are_left() -> None:
    logits = random_logits(1, 60, seed=9).bfloat16().expand(4, -1)
    asked = Sampling(top_k=20, top_p=0.9)
    left = torch.where(left_in(logits[0], asked), logits[0].float(), -INFINITE)
    tokens, _ = drawn(logits, [place(asked, seed) for seed in range(4)])
    assert tokens == winners(left, torch.arange(4), torch.ones(4, dtype=torch.int64)).tolist()


def test_a_seed_means_the_same_in_all_versions() -> None:
    """Resuming an answer on another version of this program must not change it."""
    seeds = torch.tensor([0, 1, 1234, 2**63 - 1])
    positions = torch.tensor([1, 56, 100_000, 3])
    assert winners(torch.zeros(1000), seeds, positions).tolist() == [942, 637, 134, 180]


def test_all_that_is_drawn_with_can_be_compiled_ahead() -> None:
    draw.compile_draws(70, torch.bfloat16, DEVICE)


def test_a_vocabulary_too_long_for_exact_masses_is_refused() -> None:
    with pytest.raises(ValueError, match="600000"):
        DrawRoom(1, 600_000, DEVICE)
