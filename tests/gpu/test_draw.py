"""Draws on a GPU: how often each token comes, what filters leave in, and what a draw takes."""

from typing import cast

import numpy as np
import pytest
import torch
from tests.unit.engines.reference_sampling import distance
from tests.unit.kernels.test_draw import FILTERS, left_in, place
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.core.step import GrammarState
from llmhost.engines.drawing import Place
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import asked_of
from llmhost.engines.torch.device_draws import DeviceDraws
from llmhost.engines.torch.kernels.draw import DrawRoom, draw_tokens
from llmhost.engines.torch.logprobs import measure
from llmhost.engines.torch.shaping import Shaper
from llmhost.text.grammar import Closing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCABULARY = 128_256
GREEDY = Sampling(temperature=0.0)
KINDS = {
    "greedy": GREEDY,
    "plain": Sampling(),
    "top_p 0.9": Sampling(top_p=0.9),
    "top_k 50": Sampling(top_k=50),
    "top_k 50, top_p 0.9": Sampling(top_k=50, top_p=0.9),
    "min_p 0.05": Sampling(min_p=0.05),
    "a wide nucleus": Sampling(temperature=8.0, top_p=0.9),
}


def peaked(lines: int, seed: int = 1) -> Tensor:
    """[lines, VOCABULARY] in bfloat16: a few likely tokens over many that are not."""
    generator = torch.Generator("cuda").manual_seed(seed)
    logits = torch.randn(lines, VOCABULARY, generator=generator, device="cuda") * 1.5
    likely = torch.randint(0, VOCABULARY, (lines, 60), generator=generator, device="cuda")
    heights = 14.0 - torch.arange(60, device="cuda") * 0.12
    return logits.scatter_(1, likely, heights.expand(lines, -1)).bfloat16()


def drawn(logits: Tensor, asked: list[Sampling], seeds: range) -> tuple[list[int], list[float]]:
    places = [place(one, seed) for one, seed in zip(asked, seeds, strict=True)]
    room = DrawRoom(*logits.shape, logits.device)
    out = torch.empty(len(logits), dtype=torch.int32, device="cuda")
    draw_tokens(logits, asked_of(places, logits.device), out, room)
    return out.tolist(), room.edges[:, 0].tolist()


@pytest.mark.parametrize("name", KINDS)
def test_draws_follow_the_distribution_that_is_asked_for(name: str) -> None:
    asked, count = KINDS[name], 20_000
    line = peaked(1)
    tokens: list[int] = []
    for first in range(0, count, 1000):
        seeds = range(first, first + 1000)
        tokens += drawn(line.expand(1000, -1), [asked] * 1000, seeds)[0]
    if asked.temperature == 0.0:
        assert set(tokens) == {int(line[0].float().argmax())}
        return
    kept = left_in(line[0], asked)
    shares = torch.where(kept, (line[0].double() / asked.temperature).softmax(-1), 0.0)
    assert abs(distance(tokens, (shares / shares.sum()).cpu().numpy())[0]) < 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_exactly_those_tokens_stay_in_that_the_filters_leave(dtype: torch.dtype) -> None:
    asked = [*FILTERS, *(one for one in KINDS.values() if one not in (GREEDY, Sampling()))]
    logits = peaked(len(asked), seed=3).to(dtype)
    logits[:, ::7] = float("-inf")

    tokens, edges = drawn(logits, asked, range(len(asked)))

    for line, one, token, edge in zip(logits, asked, tokens, edges, strict=True):
        kept = left_in(line, one)
        assert int((kept != ((line >= edge) & (line > float("-inf")))).sum()) == 0, one
        assert kept[token]


def test_a_draw_depends_on_neither_the_batch_nor_the_type_nor_a_graph() -> None:
    asked = [*KINDS.values()] * 8
    logits = peaked(len(asked), seed=5)
    tokens, _ = drawn(logits, asked, range(len(asked)))

    assert drawn(logits.float(), asked, range(len(asked)))[0] == tokens
    for line in range(len(KINDS)):
        alone, _ = drawn(logits[line : line + 1], asked[line : line + 1], range(line, line + 1))
        assert alone == [tokens[line]]

    room = DrawRoom(*logits.shape, logits.device)
    out = torch.empty(len(asked), dtype=torch.int32, device="cuda")
    wishes = asked_of([place(one, i) for i, one in enumerate(asked)], logits.device)
    draw_tokens(logits, wishes, out, room)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw_tokens(logits, wishes, out, room)
    out.zero_()
    graph.replay()
    assert out.tolist() == tokens


def test_lines_that_hold_no_numbers_are_told() -> None:
    logits = peaked(4)
    logits[0, -1] = float("nan")
    logits[1, 70_000] = float("inf")
    logits[2] = float("-inf")
    for asked in KINDS.values():
        tokens, _ = drawn(logits, [asked] * 4, range(4))
        assert tokens[:3] == [-1] * 3
        assert tokens[3] >= 0


def test_nothing_is_waited_for_before_a_step_is_read() -> None:
    """Whatever shapes the logits; torch says so itself where it waits."""
    packed = np.zeros((1, VOCABULARY // 32), np.int32)
    packed[0, :2] = -2, 7
    masks = Masks(packed, {2: 0}, {0: Closing(0, 1, (6, 7))})
    rows = [
        place(Sampling(logit_bias=((5, 1.0),), top_k=5)).row,
        place(Sampling(frequency_penalty=1.0, allowed_token_ids=(3, 5), bad_words=((3,),))).row,
        place(GREEDY).row._replace(grammar=cast(GrammarState, object()), seq_id=2),
        place(Sampling()).row,
    ]
    places = [Place(row._replace(known=[4, 5])) for row in rows]
    logits, draws, shaper = peaked(4), DeviceDraws(), Shaper()
    lines = torch.arange(4, device="cuda")

    def step() -> Tensor:
        tokens = draws.pick(logits, places, masks, shaper)
        return torch.cat([tokens, measure(logits, lines, tokens, 5).view(-1)])

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        numbers = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    tokens = numbers[:4].tolist()
    assert tokens[1] == 5
    assert 1 <= tokens[2] < 35


@pytest.mark.parametrize("places", [1, 32, 256])
def test_what_a_draw_takes(places: int) -> None:
    """By a graph of ten draws. It prints; its bounds are far above what was measured."""
    logits = peaked(places)
    room = DrawRoom(places, VOCABULARY, logits.device)
    out = torch.empty(places, dtype=torch.int32, device="cuda")
    for name, asked in KINDS.items():
        wishes = asked_of([place(asked, seed) for seed in range(places)], logits.device)
        draw_tokens(logits, wishes, out, room)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                draw_tokens(logits, wishes, out, room)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        took_us = begin.elapsed_time(end) * 100
        print(f"{places} places, {name}: {took_us:.1f} us")
        assert took_us < 20_000
