"""The whole way of a model on a GPU, on a double of one: what would wait, race or outlive its memory there raises here.

Kernels are interpreted, so models are as small as can be, and steps are few. Launching a step never waits.
"""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.gpu_double import breaks, installed, no_waiting
from tests.gpu_double import memory as gpu_memory
from tests.gpu_double.rules import GraphOutdated, RuleBroken, UsedTooLate
from tests.unit.engines.adapters import save_adapter
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.guessing import BLOCKS, Scripted, say
from tests.unit.engines.pooling_checkpoints import add_sentence_files, save_embedder
from tests.unit.engines.steps_ahead import check_that_steps_ahead_draw_the_same
from tests.unit.engines.toy_scheduler import GREEDY, Asked, ToyScheduler
from tests.unit.schedule.kit import a_spec, some_limits
from tests.unit.schedule.test_engine_loop import Reader, running

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import OutOfMemory
from llmhost.core.grammar import GrammarSpec
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import PENDING, Draw, KvMove, Row
from llmhost.engines.torch import backend_triton, decode_steps, load, pieces, selfcheck
from llmhost.engines.torch import runner as running_steps
from llmhost.engines.torch.compile_ahead import CompileAhead
from llmhost.engines.torch.kv import KvShape
from llmhost.engines.torch.pooling_load import load_pooling
from llmhost.engines.torch.probe import layer_scores
from llmhost.engines.torch.runner import TorchRunner
from llmhost.text.words import WordTokenizer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "vocab_size": 64,
}
BLOCK_TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llama"), "llama", **SMALL)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its matrices can be packed."""
    wide = {**SMALL, "hidden_size": 256, "intermediate_size": 256, "head_dim": 128}
    return save_checkpoint(tmp_path_factory.mktemp("wide"), "llama", **wide)


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("adapter")
    return save_adapter(target, folder, seed=3, r=4, target_modules=["q_proj", "down_proj"])


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = save_embedder(tmp_path_factory.mktemp("bert"), "bert")
    add_sentence_files(target, normalize=True)
    return target


@pytest.fixture(scope="module")
def gpu(
    folder: Path, wide_folder: Path, adapter: Path, embedder: Path
) -> Iterator[pytest.MonkeyPatch]:
    """From when all checkpoints have been made. Graphs are captured for few widths."""

    def without_waiting(method: Any) -> Any:
        def run(*args: Any) -> Any:
            with no_waiting():
                return method(*args)

        return run

    with pytest.MonkeyPatch.context() as patch, installed():
        patch.setattr(decode_steps, "WIDTHS", (1, 5))
        patch.setattr(pieces, "WIDTHS", (4, 8))
        patch.setattr(backend_triton, "warm_up", lambda *_, **__: None)  # thousands of programs
        patch.setattr(TorchRunner, "launch", without_waiting(TorchRunner.launch))
        patch.setattr(running_steps._Flight, "draw", without_waiting(running_steps._Flight.draw))
        yield patch


@pytest.fixture(autouse=True)
def no_rule_is_broken() -> Iterator[None]:
    yield
    assert not RuleBroken.found


@pytest.fixture(scope="module")
def plain(folder: Path, gpu: pytest.MonkeyPatch) -> TorchRunner:
    """The same model on the CPU."""
    options = TorchOptions(device="cpu")
    runner = load.load_runner(folder, block_tokens=BLOCK_TOKENS, options=options)
    runner.set_kv_blocks(BLOCKS)
    return runner


@pytest.fixture(scope="module")
def there(folder: Path, gpu: pytest.MonkeyPatch) -> TorchRunner:
    """A model with its graphs."""
    options = TorchOptions(device="cuda:0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selfcheck, "_LENGTHS", (4, 3))
        patch.setattr(selfcheck, "_CHUNKS", ((3, 1),))
        runner = load.load_runner(folder, block_tokens=BLOCK_TOKENS, options=options)
    # Later ones are loaded in less time: they are not compared with transformers.
    gpu.setattr(load, "_compile_ahead", lambda *_: CompileAhead(()))
    gpu.setattr(load, "check_against_eager", look)
    with_graphs(runner)
    return runner


def look(runner: TorchRunner, model: Any, folder: Path, shape: KvShape) -> None:
    """What the check of a loaded model finds out, without the check."""
    with torch.inference_mode():
        runner.layers_ask = layer_scores(model, [1, 2, 3], shape, 64)
    runner.windows = [scores.window for scores in runner.layers_ask]


def with_graphs(runner: TorchRunner, *, most_rows: int = 5, blocks: int = BLOCKS) -> None:
    runner.most_rows, runner.most_tokens = most_rows, 8 if most_rows > 1 else 4
    runner.set_kv_blocks(blocks)


class Kept:
    """A runner that keeps its blocks, and its graphs, whoever takes it."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner

    def set_kv_blocks(self, count: int) -> None: ...

    def close(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


def asked(new_tokens: int = 3, sampling: Sampling = GREEDY) -> list[Asked]:
    prompts = [(3, 9), (5, 6, 7, 8, 9, 10, 11), (60,)]
    return [Asked(prompt, new_tokens, sampling, seed) for seed, prompt in enumerate(prompts)]


def answers(runner: TorchRunner, *more: Asked, **options: Any) -> list[list[int]]:
    """In steps of a few tokens, which pieces are for, and of one for each row, which whole graphs are for."""
    return ToyScheduler(Kept(runner), chunk=5).answer(*asked(**options), *more)  # type: ignore[arg-type]


def answer(runner: TorchRunner) -> list[int]:
    """Of one sequence, in three steps."""
    return ToyScheduler(Kept(runner), chunk=5).answer(Asked((5, 6, 7), 3))[0]  # type: ignore[arg-type]


def test_a_model_is_loaded_straight_and_answers_as_on_the_cpu(
    there: TorchRunner, plain: TorchRunner
) -> None:
    assert there.facts.device == "cuda:0" and there.facts.runs_ahead and there.facts.can_sleep
    assert there.path is not None and there.path.decoder is not None
    assert all(one.is_cuda for one in there._model.parameters())
    assert there.facts.measured_bytes is not None
    assert there.facts.measured_bytes > there.facts.weights_bytes
    assert answers(there) == answers(plain)


@pytest.mark.parametrize("is_held", [False, True])
def test_what_shapes_a_token_does_so_in_steps_that_are_launched_ahead(
    there: TorchRunner, *, is_held: bool
) -> None:
    check_that_steps_ahead_draw_the_same(there, is_held=is_held)


async def test_an_engine_has_its_steps_overlap(
    there: TorchRunner, plain: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [(5, 6, 7), range(2, 12), (60,)]
    specs = [a_spec(prompt, max_new_tokens=4, index=at) for at, prompt in enumerate(prompts)]
    launched: list[int] = []
    launch = there.launch
    monkeypatch.setattr(there, "launch", lambda rows: (launched.append(len(rows)), launch(rows))[1])
    readers = [Reader() for _ in specs]
    limits = some_limits(block_tokens=BLOCK_TOKENS)
    async with running(Kept(there), limits=limits) as engine:  # type: ignore[arg-type]
        for spec, reader in zip(specs, readers, strict=True):
            engine.submit(spec, reader)
        for reader in readers:
            await reader.end()
    assert [reader.tokens for reader in readers] == say(plain, specs).answers
    assert len(launched) > 3


async def test_an_engine_s_steps_overlap_beside_grammars_and_a_caller_who_leaves(
    there: TorchRunner, plain: TorchRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks are filled by a thread, and draws wait for the step before; nothing of it has to be done again."""
    words = WordTokenizer(there.facts.vocab_size)
    form = GrammarSpec("choice", json.dumps([words.decode([7, 8, 9, 7]), words.decode([8] * 5)]))
    words.compile_grammar(form)
    asked: list[dict[str, Any]] = [
        {"grammar": form},
        {"grammar": form, "sampling": replace(GREEDY, logprobs=2), "max_new_tokens": 3},
        {"sampling": replace(GREEDY, bad_words=((9,), (5, 7)), repetition_penalty=1.7)},
        {"min_new_tokens": 4, "stop_token_ids": frozenset(range(2, 60))},
    ]
    prompts = [(5, 6, 7), (60,), (3, 9), (4, 4)]
    specs = [
        a_spec(prompt, **{"max_new_tokens": 6, "index": at, **wish})
        for at, (prompt, wish) in enumerate(zip(prompts, asked, strict=True))
    ]
    limits = some_limits(block_tokens=BLOCK_TOKENS)
    said = []
    for runner in (Kept(plain), Kept(there)):
        readers = [Reader() for _ in specs]
        async with running(runner, limits=limits, tokenizer=words) as engine:  # type: ignore[arg-type]
            gone = engine.submit(
                a_spec((8, 8), max_new_tokens=40, grammar=form), lambda delta: None
            )
            for spec, reader in zip(specs, readers, strict=True):
                engine.submit(spec, reader)
            engine.cancel(gone)
            ends = [await reader.end() for reader in readers]
        reports = [one for reader in readers for delta in reader.deltas for one in delta.logprobs]
        said.append(
            (
                [reader.tokens for reader in readers],
                [(end.finish_reason, end.error) for end in ends],
                [(one.token, one.rank, [token for token, _ in one.top]) for one in reports],
            )
        )
    assert said[0] == said[1]
    assert len(said[0][2]) == 3
    assert "flight.failed" not in caplog.text


def test_graphs_are_forgotten_when_the_cache_moves(there: TorchRunner, plain: TorchRunner) -> None:
    one, right = Asked((5, 6, 7), 4), Asked((5, 6, 7), 4)
    ToyScheduler(plain).answer(right)
    toy = ToyScheduler(Kept(there))  # type: ignore[arg-type]
    toy.step([one])
    toy.step([one])
    with_graphs(there, most_rows=1, blocks=BLOCKS - 8)  # its blocks stay what they are
    toy.step([one])
    with_graphs(there, most_rows=1)
    assert toy.answer(one) == [right.made]


def test_a_graph_that_were_not_forgotten_would_be_noticed(
    there: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(there, "_forget_graphs", lambda: None)
        there.set_kv_blocks(BLOCKS - 8)
    with breaks(GraphOutdated):
        answer(there)
    with_graphs(there, most_rows=1)


def test_a_model_sleeps_and_wakes(there: TorchRunner, plain: TorchRunner) -> None:
    before = torch.cuda.memory_allocated()
    there.set_kv_blocks(0)
    there.sleep()
    assert torch.cuda.memory_allocated() < before - there.facts.weights_bytes
    with breaks(UsedTooLate), torch.inference_mode():
        there._model(input_ids=torch.tensor([[3]], device=there.device))
    there.wake()
    with_graphs(there, most_rows=1)
    assert torch.cuda.memory_allocated() == pytest.approx(before, rel=0.01)
    assert answer(there) == answer(plain)


def test_a_full_device_lets_a_model_sleep_on(
    there: TorchRunner, plain: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.set_kv_blocks(0)
    there.sleep()
    asleep = torch.cuda.memory_allocated()
    with monkeypatch.context() as patch:
        patch.setattr(gpu_memory, "CAPACITY_BYTES", asleep + 10_000)
        with pytest.raises(OutOfMemory):
            there.wake()
    assert torch.cuda.memory_allocated() == asleep
    there.wake()
    with_graphs(there, most_rows=1)
    assert answer(there) == answer(plain)


def test_blocks_move_to_host_memory_and_back(there: TorchRunner, plain: TorchRunner) -> None:
    right = Asked((5, 6, 7, 8, 9), 3)
    ToyScheduler(plain).answer(right)
    first = [Row(1, [5, 6, 7, 8], 0, [3], GREEDY, 0, wants_token=False)]
    there.set_host_blocks(4)
    there.run(first)
    with no_waiting():
        there.move_blocks([KvMove(2, 1, is_to_host=True), KvMove(3, 1, is_to_host=True)])
    assert there._kv is not None
    for key, value in there._kv.layers:
        key[3], value[3] = 0, 0
    with no_waiting():
        there.move_blocks([KvMove(7, 1, is_to_host=False)])
    assert there.run([Row(1, [9], 4, [7], GREEDY, 0, wants_token=True)]) == right.made[:1]


def test_guesses_save_steps_and_change_nothing(there: TorchRunner, plain: TorchRunner) -> None:
    spec = a_spec((5, 6, 7), max_new_tokens=6)
    known = say(plain, [spec]).answers[0]

    def guess(ask: Any) -> Sequence[int]:
        at = len(ask.tokens) - len(spec.prompt)
        return [*known[at : at + 2], 1]

    said = say(Kept(there), [spec], Scripted(guess))  # type: ignore[arg-type]
    assert said.answers == [known]
    assert said.steps < len(known)


def test_rows_with_an_adapter_run_beside_others(
    there: TorchRunner, plain: TorchRunner, adapter: Path
) -> None:
    said = []
    for runner in (plain, there):
        runner.adapters.add("a", runner.adapters.read(adapter))
        said.append(answers(runner, Asked((5, 6, 7), 3, adapter="a"), new_tokens=2))
        runner.adapters.drop("a")
    assert said[0] == said[1]
    assert said[0][3] != answers(plain, Asked((5, 6, 7), 3))[3]


@pytest.mark.parametrize(
    "options", [{"weights": "fp8"}, {"weights": "int4"}, {"kv_dtype": "fp8"}, {"dtype": "float16"}]
)
def test_narrow_numbers_take_the_same_way(
    there: TorchRunner, folder: Path, wide_folder: Path, options: dict[str, Any]
) -> None:
    """What is launched ahead is what is run. Triton's interpreter can't compute in bfloat16."""
    before = torch.cuda.memory_allocated()
    asked = TorchOptions(device="cuda:0", **options)
    read = wide_folder if "int4" in options.values() else folder
    runner = load.load_runner(read, block_tokens=BLOCK_TOKENS, options=asked)
    with_graphs(runner, most_rows=1)
    rows = [Row(1, [5, 6, 7], 0, [3], GREEDY, 0, wants_token=True)]
    (first,) = runner.run(rows)
    (second,) = runner.run([Row(1, [first], 3, [3], GREEDY, 0, wants_token=True)])  # type: ignore[list-item]
    flights = [runner.launch(rows)]
    flights.append(runner.launch([Row(1, [PENDING], 3, [3], GREEDY, 0, wants_token=True)]))
    assert [flight.land() for flight in flights] == [[first], [second]]
    runner.close()
    del runner, flights
    gc.collect()
    assert torch.cuda.memory_allocated() == pytest.approx(before, abs=2**16)


def test_a_model_that_goes_through_its_own_modules_is_captured_too(
    there: TorchRunner, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path, "gemma2", **{**SMALL, "num_hidden_layers": 2})
    said = []
    for device in ("cpu", "cuda:0"):
        options = TorchOptions(device=device)
        runner = load.load_runner(folder, block_tokens=BLOCK_TOKENS, options=options)
        with_graphs(runner, most_rows=3)
        said.append(answers(runner, new_tokens=2))
    assert runner.path is not None and runner.path.decoder is None
    assert runner._decode is not None and set(runner._decode._graphs) == {1, 5}
    assert said[0] == said[1]


def test_a_model_that_pools_runs_there(there: TorchRunner, embedder: Path) -> None:
    rows = [
        Row(number, text, 0, [], GREEDY, 0, True, pooling=Pooling("embed"))
        for number, text in enumerate([[5, 6, 7], [9, 10]])
    ]
    pooled = []
    for device in ("cpu", "cuda:0"):
        options = TorchOptions(device=device)
        runner = load_pooling(embedder, task="embed", block_tokens=16, options=options)
        drawn = runner.run(rows)
        pooled.append(torch.tensor([[*one.pooled] for one in drawn if isinstance(one, Draw)]))
        runner.close()
    torch.testing.assert_close(pooled[0], pooled[1])


def test_an_unloaded_model_leaves_nothing(there: TorchRunner) -> None:
    before = torch.cuda.memory_allocated()
    there.close()
    gc.collect()
    assert torch.cuda.memory_allocated() < before / 10
