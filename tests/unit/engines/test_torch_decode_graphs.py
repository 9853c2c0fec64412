"""Decoding steps as graphs, on a GPU that isn't there and without a model."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.gpu_double import installed, no_waiting, swallows
from tests.gpu_double.rules import NotCapturable
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Row
from llmhost.engines.masks import Masks
from llmhost.engines.torch.asked import DrawAsked
from llmhost.engines.torch.decode_steps import DecodeRows, DecodeSteps, Draws, InOrder

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
DEVICE = torch.device("cuda:0")
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with installed(), torch.inference_mode():
        yield


class Counting:
    """In a model's place: it says the number after the one that it was fed, and after 9 begins anew. Its cache has
    what every sequence was fed, at its slot."""

    def __init__(self, amid: Callable[[Tensor], object] = lambda logits: None) -> None:
        self.cache = torch.full((64,), -1, device=DEVICE)
        self._numbers = torch.arange(10, device=DEVICE)
        self.runs = 0
        self._amid = amid

    def compute(self, rows: DecodeRows) -> Tensor:
        self.runs += 1
        is_row = rows.slots >= 0
        at = rows.slots.clamp(min=0).long()
        self.cache[at] = torch.where(is_row, rows.ids.long(), self.cache[at])
        logits = ((rows.ids[:, None] + 1) % 10 == self._numbers).float()
        self._amid(logits)
        return logits

    def draw(self, logits: Tensor, asked: DrawAsked, out: Tensor) -> None:
        out[: len(logits)] = logits.argmax(-1).int()


def steps_of(model: Counting) -> DecodeSteps:
    return DecodeSteps(
        model.compute, model.draw, lambda *_: None, block_tokens=4, longest=64, device=DEVICE
    )


def rows_of(tokens: Sequence[int], start: int) -> list[Row]:
    return [
        Row(number, [token], start, [2 * number, 2 * number + 1], GREEDY, 0, wants_token=True)
        for number, token in enumerate(tokens)
    ]


def launched(steps: DecodeSteps, rows: list[Row]) -> Draws | InOrder:
    with no_waiting():
        return steps.finish(steps.begin(rows), lambda _: Masks())


def test_steps_of_all_widths_are_replayed_and_wait_for_nobody() -> None:
    steps = steps_of(model := Counting())
    steps.prepare(8)
    runs = model.runs
    flights, expected = [], []
    for count in (1, 2, 3, 5, 8, 4):
        tokens = [(7 * place + count) % 10 for place in range(count)]
        flights.append(launched(steps, rows_of(tokens, 3)))
        expected.append([(token + 1) % 10 for token in tokens])
    assert [flight.land() for flight in flights] == expected
    assert model.runs == runs


def test_tokens_that_only_the_device_knows_are_fed_by_graphs_too() -> None:
    steps = steps_of(model := Counting())
    steps.prepare(2)
    flights = [launched(steps, rows_of([3, 8], 0))]
    for start in range(1, 4):
        behind = rows_of([PENDING, PENDING], start)
        flights.append(launched(steps, behind[::-1] if start % 2 else behind))
    assert [flight.land() for flight in flights] == [[4, 9], [0, 5], [6, 1], [2, 7]]
    assert model.cache[:4].tolist() == [3, 4, 5, 6]
    assert model.cache[8:12].tolist() == [8, 9, 0, 1]


def test_what_graphs_cant_be_made_of_is_run_as_it_is() -> None:
    steps = steps_of(Counting(lambda logits: logits[0, 0].item()))
    with swallows(NotCapturable):
        assert steps.finish(steps.begin(rows_of([3, 4], 0)), lambda _: Masks()).land() == [4, 5]
    steps.prepare(8)  # tries no more
    assert steps.finish(steps.begin(rows_of([5], 1)), lambda _: Masks()).land() == [6]


@pytest.mark.parametrize("room", [0, 1])
def test_a_device_that_is_full_amid_a_capture_disturbs_no_step(room: int) -> None:
    """Whatever was launched aside is done before the step is run in its place."""
    left = [room]

    def fill(logits: Tensor) -> None:
        if torch.cuda.current_stream() is not torch.cuda.default_stream():
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    steps = steps_of(model := Counting(fill))
    assert steps.finish(steps.begin(rows_of([3, 4], 0)), lambda _: Masks()).land() == [4, 5]
    assert model.cache[[0, 8]].tolist() == [3, 4]
    steps.forget()
    left[0] = 2
    assert steps.finish(steps.begin(rows_of([5, 6], 1)), lambda _: Masks()).land() == [6, 7]
    assert left == [0]
