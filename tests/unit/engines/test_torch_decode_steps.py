"""What a decoding step finds on its device, without a model."""

import tests.unit.kernels.interpreting  # noqa: F401
import torch
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.core.step import Drawn, Row
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import DrawAsked
from llmhost.engines.torch.decode_steps import DecodeRows, DecodeSteps

SIZE = 4
GREEDY = Sampling(temperature=0.0)


class Seen:
    """In a model's place: it keeps what it was given."""

    def __init__(self) -> None:
        self.tables = torch.empty(0)

    def compute(self, rows: DecodeRows) -> Tensor:
        self.tables = rows.tables.clone()
        return torch.zeros(len(rows.ids), 8)

    def draw(self, logits: Tensor, asked: DrawAsked, out: Tensor) -> None:
        out[: len(logits)] = 5


def steps_of(seen: Seen) -> DecodeSteps:
    return DecodeSteps(
        seen.compute,
        seen.draw,
        lambda *_: None,
        block_tokens=SIZE,
        longest=64,
        device=torch.device("cpu"),
    )


def step(steps: DecodeSteps, row: Row) -> list[Drawn]:
    return steps.finish(steps.begin([row]), lambda _: Masks()).land()


def a_row(start: int, blocks: list[int]) -> Row:
    return Row(1, [3], start, blocks, GREEDY, 0, wants_token=True)


def test_a_block_that_was_taken_early_is_there_when_it_is_reached() -> None:
    """Guesses that came to nothing leave a sequence with more blocks than it sees."""
    steps, blocks = steps_of(seen := Seen()), [5, 6, 7]
    for start in (6, 7, 8, 9):
        assert step(steps, a_row(start, blocks)) == [5]
        used = start // SIZE + 1
        assert seen.tables[0, :used].tolist() == blocks[:used]


def test_a_block_that_was_exchanged_is_noticed() -> None:
    steps, blocks = steps_of(seen := Seen()), [5, 6]
    step(steps, a_row(5, blocks))
    blocks[0] = 9  # its text was computed by another as well
    step(steps, a_row(6, blocks))

    assert seen.tables[0, :2].tolist() == [9, 6]
