"""The way that models run on a GPU, computed here by Triton's interpreter: the same tokens as transformers' own way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.runner_contract import PROMPTS, ask
from tests.unit.engines.toy_scheduler import GREEDY, ToyScheduler
from tests.unit.kernels import attention_doubles as doubles
from torch import Tensor

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, Row
from llmhost.engines.masks import Masks
from llmhost.engines.torch.kv import KvShape
from llmhost.engines.torch.layout import lay_out
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.pieces import Pieces
from llmhost.engines.torch.probe import layer_scores
from llmhost.engines.torch.runner import TorchRunner

Load = Callable[..., TorchRunner]
WARM = Sampling(temperature=1.0)


@pytest.fixture
def load_with_kernels(load: Load, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Without the check of a loaded model, which takes the interpreter long: what it finds out is found out."""

    def look(runner: TorchRunner, model: Any, folder: Path, shape: KvShape) -> None:
        with torch.inference_mode():
            runner.layers_ask = layer_scores(model, [1, 2, 3], shape, 64)
            runner.windows = [scores.window for scores in runner.layers_ask]

    monkeypatch.setattr("llmhost.engines.torch.load.has_kernels", lambda device: True)
    monkeypatch.setattr("llmhost.engines.torch.load.launches_of", lambda *_, **__: [])
    monkeypatch.setattr("llmhost.engines.torch.load.check_against_eager", look)
    return lambda family: load(family, block_tokens=8)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that matters where the same kernels are launched in different orders."""
    return save_checkpoint(tmp_path_factory.mktemp("one_layer"), "llama", num_hidden_layers=1)


@pytest.fixture
def runner(load_with_kernels: Load, one_layer: Path) -> TorchRunner:
    runner = load_runner(one_layer, block_tokens=8, options=TorchOptions())
    runner.set_kv_blocks(16)
    return runner


def rows_of(
    tables: list[list[int]], tokens: list[int], start: int, sampling: Sampling
) -> list[Row]:
    return [
        Row(number, [token], start, table, sampling, seed=number, wants_token=True)
        for number, (table, token) in enumerate(zip(tables, tokens, strict=True))
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_answers_are_those_of_the_plain_way(
    load: Load, load_with_kernels: Load, family: str
) -> None:
    runner = load_with_kernels(family)
    assert runner.path is not None
    assert (runner.path.decoder is not None) is (family == "llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmhost.engines.torch.load.has_kernels", lambda device: False)
        plain = load(family, block_tokens=8)

    expected = ToyScheduler(plain, chunk=20).answer(*ask(new_tokens=2)[1:3])
    assert ToyScheduler(runner, chunk=20).answer(*ask(new_tokens=2)[1:3]) == expected


def test_steps_launched_ahead_draw_what_steps_one_by_one_draw(runner: TorchRunner) -> None:
    tables = [[5, 2], [9, 1], [4, 8]]
    one_by_one, tokens = [], [3, 4, 5]
    for start in range(3):
        tokens = runner.run(rows_of(tables, tokens, start, WARM))  # type: ignore[assignment]
        one_by_one.append(tokens)

    flights = [runner.launch(rows_of(tables, [3, 4, 5], 0, WARM))]
    ahead = []
    for start in range(1, 3):
        rows = rows_of(tables, [PENDING] * 3, start, WARM)
        rows.reverse()  # places are found by sequence, not by order
        flights.append(runner.launch(rows))
        ahead.append(flights[-2].land())
    ahead.append(flights[-1].land())
    assert [ahead[0], *(landed[::-1] for landed in ahead[1:])] == one_by_one


def test_a_prompt_joins_while_others_are_ahead(runner: TorchRunner) -> None:
    prompt = list(PROMPTS[2])

    def prompt_row(chunk: slice) -> Row:
        is_last = chunk.stop >= len(prompt)
        return Row(7, prompt[chunk], chunk.start, [3, 6], GREEDY, 0, wants_token=is_last)

    first = runner.run(rows_of([[5]], [3], 0, GREEDY))
    second = runner.run([*rows_of([[5]], first, 1, GREEDY), prompt_row(slice(0, 5))])  # type: ignore[arg-type]
    third = runner.run([prompt_row(slice(5, 99)), *rows_of([[5]], second[:1], 2, GREEDY)])  # type: ignore[arg-type]

    flights = [
        runner.launch(rows_of([[5]], [3], 0, GREEDY)),
        runner.launch([*rows_of([[5]], [PENDING], 1, GREEDY), prompt_row(slice(0, 5))]),
        runner.launch([prompt_row(slice(5, 99)), *rows_of([[5]], [PENDING], 2, GREEDY)]),
    ]
    assert [flight.land() for flight in flights] == [first, second, third]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NaN by NumPy
def test_a_row_without_numbers_fails_alone(runner: TorchRunner) -> None:
    assert runner._kv is not None
    runner.run(rows_of([[5], [9]], [3, 4], 0, GREEDY))
    for key, _ in runner._kv.layers:
        key[9].fill_(float("nan"))
    drawn = runner.launch(rows_of([[5], [9]], [3, 4], 1, GREEDY)).land()

    assert isinstance(drawn[0], int)
    assert isinstance(drawn[1], EngineFailed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_without_numbers_is_not_said_to_be_too_complex_where_its_form_is_free(
    runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.engines.torch.sampler.KERNELS", "cpu")
    assert runner._kv is not None
    (row,) = rows_of([[5]], [3], 0, GREEDY)
    (first,) = runner.run([row])
    before = runner.launch([row])
    for key, _ in runner._kv.layers:
        key[5].fill_(float("nan"))
    flight = runner.launch([row._replace(tokens=[PENDING], start=1, known=[3], grammar=Free())])
    assert before.land() == [first]
    flight.draw()
    (failure,) = flight.land()

    assert type(failure) is EngineFailed
    assert "NaN" in failure.message


def test_a_grammar_is_asked_nothing_while_its_mask_is_filled(
    runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread fills it, from the launch on, where the grammar has no token to wait for."""
    filling: list[Row] = []

    class Held(Free):
        is_free = False

        @property
        def is_ended(self) -> bool:
            assert not filling
            return False

    def start(rows: Sequence[Row], vocabulary: int) -> Callable[[], Masks]:
        filling.extend(rows)
        every = np.full((1, -(-vocabulary // 32)), -1, np.int32)

        def filled() -> Masks:
            filling.clear()
            return Masks(every, {0: 0})

        return filled

    monkeypatch.setattr("llmhost.engines.torch.sampler.KERNELS", "cpu")
    monkeypatch.setattr(runner._masks, "start", start)
    (row,) = rows_of([[5]], [3], 0, GREEDY)
    expected = runner.run([row])
    assert runner.launch([row._replace(known=[3], grammar=Held())]).land() == expected


@pytest.mark.parametrize("way", ["run", "launch"])
def test_a_step_that_fails_leaves_no_mask_that_is_being_filled(
    runner: TorchRunner, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Whoever plans the next step may ask the grammar."""
    waited: list[bool] = []

    def start(rows: Sequence[Row], vocabulary: int) -> Callable[[], Masks]:
        def filled() -> Masks:
            waited.append(True)
            return Masks()

        return filled

    def fail(rows: Sequence[Row]) -> Tensor:
        raise RuntimeError("no kernel")

    assert runner._decode is not None
    monkeypatch.setattr(runner._masks, "start", start)
    monkeypatch.setattr(runner._decode, "logits", fail)
    (row,) = rows_of([[5]], [3], 0, GREEDY)
    with pytest.raises(RuntimeError, match="no kernel"):
        getattr(runner, way)([row._replace(known=[3], grammar=Free())])
    assert waited == [True]


class Free:
    """A form that holds nothing at the moment."""

    is_ended, is_free = False, True

    def accept(self, token: int) -> None: ...

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        return len(tokens)


@pytest.mark.usefixtures("load_with_kernels")
def test_a_library_attends_to_prompts_between_pieces_and_beside_a_sequence_that_writes(
    one_layer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.install_fa3(monkeypatch)
    options = TorchOptions(dtype="float16", attention="flash_attention_3")
    runner = load_runner(one_layer, block_tokens=8, options=options)
    runner.set_kv_blocks(16)
    path = runner.path
    assert path is not None and path.decoder is not None and path.prefill is not None
    assert runner.facts.attends == "flash_attention_3"
    kv, called = runner._open_kv(), []
    path.pieces = Pieces(path.decoder, lambda: kv.layers, record=played)
    tokens = list(range(3, 24))

    def hidden() -> torch.Tensor:
        for layer in kv.layers:
            for part in layer:
                part.fill_(torch.nan)
        for start, end in ((0, 12), (12, 21)):  # the second chunk reads what the first one left
            rows = [
                Row(0, tokens[start:end], start, [3, 6, 9], GREEDY, 0, wants_token=True),
                Row(1, [5], 0, [start // 8], GREEDY, 0, wants_token=True),
            ]
            layout = lay_out(rows, block_tokens=8, device=runner.device)
            found = path.hidden(layout, runner.windows).clone()
        return found

    with (
        torch.inference_mode(),
        doubles.twisting("flash_attention_3", lambda out: called.append(len(out))),
    ):
        by_library = hidden()
        path.prefill = None
        by_our_kernel = hidden()
    assert called == [12, 9]
    torch.testing.assert_close(by_library, by_our_kernel, rtol=1e-2, atol=1e-2)


def played(piece: Callable[[], torch.Tensor]) -> tuple[Callable[[], object], torch.Tensor]:
    out = piece()
    return lambda: out.copy_(piece()), out
