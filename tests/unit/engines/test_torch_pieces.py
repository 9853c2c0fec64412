"""The pieces of a step give what the fused decoder gives as a whole, whatever was in them before."""

from collections.abc import Callable

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from torch import Tensor

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.pieces import WIDTHS, Pieces
from llmhost.engines.torch.runner import TorchRunner


def played(piece: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """As a graph is: a replay leaves its result where the first one was."""
    out = piece()
    return lambda: out.copy_(piece()), out


@pytest.fixture
def runner(load: Callable[..., TorchRunner], monkeypatch: pytest.MonkeyPatch) -> TorchRunner:
    monkeypatch.setattr("llmhost.engines.torch.load.has_kernels", lambda device: True)
    monkeypatch.setattr("llmhost.engines.torch.load.launches_of", lambda *_, **__: [])
    monkeypatch.setattr("llmhost.engines.torch.load.check_against_eager", lambda *_: None)
    runner = load("llama", block_tokens=8)
    runner.set_kv_blocks(6)
    return runner


def halved(layer: int, query: Tensor, out: Tensor | None = None) -> Tensor:
    """In place of attention: anything that keeps to the token."""
    given = query * (0.5 + layer)
    return given if out is None else out.copy_(given)


@torch.inference_mode()
def test_pieces_give_what_the_whole_gives(runner: TorchRunner) -> None:
    assert runner.path is not None and runner.path.decoder is not None
    decoder, kv = runner.path.decoder, runner._open_kv()
    pieces = Pieces(decoder, lambda: kv.layers, record=played)

    def caches() -> list[KeyValue]:
        return [KeyValue(*(part.clone() for part in layer)) for layer in kv.layers]

    for count in (5, 3):
        ids = torch.arange(count) * 7 % runner.facts.vocab_size
        positions, slots = torch.arange(count) + 2, torch.arange(count) + 9
        whole = decoder.hidden(ids, positions, slots, caches(), halved)
        found = pieces.hidden(ids, positions, slots, halved)
        assert found is not None
        torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-5)


def test_longer_steps_and_devices_without_graphs_do_without(runner: TorchRunner) -> None:
    assert runner.path is not None and runner.path.decoder is not None
    kv = runner._open_kv()
    pieces = Pieces(runner.path.decoder, lambda: kv.layers, record=played)
    assert pieces.takes(WIDTHS[-1])
    assert not pieces.takes(WIDTHS[-1] + 1)
    assert not Pieces(runner.path.decoder, lambda: kv.layers).takes(1)
