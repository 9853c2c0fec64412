"""Libraries attend in steps that are launched ahead, on a GPU that isn't there."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.gpu_double import breaks, installed, no_waiting
from tests.gpu_double.rules import ChangedTooEarly, Waited
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.toy_scheduler import GREEDY
from tests.unit.kernels import attention_doubles as doubles

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.step import PENDING, Row
from llmhost.engines.torch import flashinfer_attention
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.flash_attention_3 import FlashAttention3
from llmhost.engines.torch.flashinfer_attention import FlashInfer
from llmhost.engines.torch.kv import KeyValue, KvShape
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.prefill import Form, PrefillAttention
from llmhost.engines.torch.prefill_trial import Trial, rows_of
from llmhost.engines.torch.probe import layer_scores
from llmhost.engines.torch.runner import TorchRunner

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")

PROMPT = list(range(3, 58))
BLOCKS = [9, 3, 11, 5, 13, 7, 1]
CHUNKS = ((0, 20), (20, 34), (34, 55))


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    doubles.install_fa3(monkeypatch)
    doubles.install_flashinfer(monkeypatch)
    monkeypatch.setattr(flashinfer_attention, "DIMS", (16, 64))
    monkeypatch.setattr("llmhost.engines.torch.load.check_against_eager", look)
    monkeypatch.setattr("llmhost.engines.torch.load.launches_of", lambda *_, **__: [])
    with installed():
        yield


def look(runner: TorchRunner, model: Any, folder: Path, shape: KvShape) -> None:
    """What the check of a loaded model finds out, without the check."""
    with torch.inference_mode():
        runner.layers_ask = layer_scores(model, [1, 2, 3], shape, 64)
        runner.windows = [scores.window for scores in runner.layers_ask]


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("one_layer"), "llama", num_hidden_layers=1)


@pytest.fixture
def load(one_layer: Path) -> Callable[[str], TorchRunner]:
    def loaded(attention: Any) -> TorchRunner:
        options = TorchOptions(device="cuda:0", dtype="float16", attention=attention)
        runner = load_runner(one_layer, block_tokens=8, options=options)
        runner.set_kv_blocks(16)
        return runner

    return loaded


def drawn_ahead(runner: TorchRunner) -> list[list[Any]]:
    """A prompt in chunks beside a sequence that writes, each step launched before the last one is read."""
    flights = []
    for number, (start, end) in enumerate(CHUNKS):
        is_last = end == len(PROMPT)
        rows = [
            Row(0, [PENDING] if number else [7], number, [15], GREEDY, 0, wants_token=True),
            Row(1, PROMPT[start:end], start, BLOCKS, GREEDY, 0, wants_token=is_last),
        ]
        flights.append(runner.launch(rows))
    return [flight.land() for flight in flights]


def test_a_library_draws_what_our_kernel_draws(load: Callable[[str], TorchRunner]) -> None:
    called: list[int] = []
    runner = load("flashinfer")
    assert runner.facts.attends == "flashinfer" and runner.path is not None
    with doubles.twisting("flashinfer", lambda out: called.append(len(out))):
        by_library = drawn_ahead(runner)
    assert called == [end - start for start, end in CHUNKS]
    runner.path.prefill = None
    assert drawn_ahead(runner) == by_library


FORM = Form(heads=4, kv_heads=2, dim=64, block_tokens=8, dtype=torch.float16, stored=torch.float16)


def attend(attention: PrefillAttention, seeds: Sequence[int]) -> None:
    """In steps of other rows each, the device's numbers all there before the first."""
    trials = []
    for seed in seeds:
        numbers = torch.Generator("cuda:0").manual_seed(seed)
        counts = [10 + seed, 20 + 3 * seed]
        rows = rows_of([0, 9 * seed], counts, 8, torch.device("cuda:0"), numbers)
        query = torch.ones(sum(counts), 4, 64, dtype=torch.float16, device="cuda:0")
        cache = KeyValue(
            *(torch.ones(32, 8, 2, 64, dtype=torch.float16, device="cuda:0") for _ in "kv")
        )
        trials.append((rows, query, cache, torch.empty_like(query)))
    torch.cuda.synchronize()
    with torch.inference_mode(), no_waiting():
        for rows, query, cache, out in trials:
            for scores in (Scores(), Scores(window=7)):
                attention.attend(rows, query, cache, scores, out)


def test_nobody_waits() -> None:
    attend(FlashAttention3(FORM), range(4))
    attend(FlashInfer(FORM, torch.device("cuda:0"), (9, 0)), range(flashinfer_attention.TURNS))


def test_a_plan_waits_for_the_one_before_in_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    more = range(flashinfer_attention.TURNS + 1)
    with breaks(Waited):
        attend(FlashInfer(FORM, torch.device("cuda:0"), (9, 0)), more)
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda event: None)
    with breaks(ChangedTooEarly):
        attend(FlashInfer(FORM, torch.device("cuda:0"), (9, 0)), more)
        torch.cuda.synchronize()


@pytest.mark.skipif(not doubles.HAS_FLASHINFER, reason="FlashInfer is not installed")
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_the_real_flashinfer_plans_and_runs_as_it_is_asked(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but what it compiles."""
    flashinfer = doubles.real_flashinfer(monkeypatch)
    monkeypatch.setattr(flashinfer.prefill, "get_batch_prefill_module", doubles.compiled_for)
    device = torch.device("cuda:0")
    attention = FlashInfer(FORM, device, capability)
    for scores in (Scores(), Scores(0.3, window=7), Scores(softcap=5.0)):
        assert Trial.of(FORM, scores, device).error_of(attention) < 2e-3
    attend(FlashInfer(FORM, device, capability), range(flashinfer_attention.TURNS))
