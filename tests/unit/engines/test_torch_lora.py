"""LoRA adapters: the answers that PEFT gives, whatever else is in the batch, and the model's own bits without one."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.engines.adapters import peft_answers, save_adapter
from tests.unit.engines.checkpoints import VOCAB
from tests.unit.engines.toy_scheduler import GREEDY, Asked, ToyScheduler

from llmhost.core.errors import EngineFailed, ModelUnavailable
from llmhost.core.step import Row
from llmhost.engines.torch import lora
from llmhost.engines.torch.runner import TorchRunner

NEW_TOKENS = 12
NEAR_TIE = 1e-4
LENGTHS = (1, 7, 40)

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llama", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "everywhere": ("llama", {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}),
    "patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 4,
            "use_rslora": True,
            "target_modules": r".*\.layers\.[02]\..*\.(o_proj|up_proj|down_proj)",
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {r"layers\.2\.mlp\.up_proj": 9},
        },
    ),
    "head": (
        "llama",
        {"r": 3, "target_modules": ["lm_head", "k_proj"], "layers_to_transform": [1]},
    ),
    "conv": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
}

Load = Callable[..., TorchRunner]
Checkpoint = Callable[[str], Path]
Adapter = Callable[[str], Path]


@cache
def prompts() -> list[list[int]]:
    numbers = random.Random(9)
    return [[numbers.randrange(VOCAB) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="session")
def adapter(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            family, config = ADAPTERS[name]
            folder = tmp_path_factory.mktemp(name)
            made[name] = save_adapter(folder, checkpoint(family), seed=len(made), **config)
        return made[name]

    yield get
    expected.cache_clear()


@cache
def expected(base: Path, adapter: Path) -> tuple[list[list[int]], list[list[float]]]:
    return peft_answers(base, adapter, prompts(), NEW_TOKENS)


def agrees(answers: list[list[int]], reference: tuple[list[list[int]], list[list[float]]]) -> bool:
    """Every answer is the reference's, but where that is undecided itself."""
    for ours, theirs, gaps in zip(answers, *reference, strict=True):
        for token, wanted, gap in zip(ours, theirs, gaps, strict=True):
            if token != wanted:
                if gap >= NEAR_TIE:
                    return False
                break
    return True


def add(runner: TorchRunner, name: str, folder: Path) -> None:
    runner.adapters.add(name, runner.adapters.read(folder))


def asked(adapter: str | None) -> list[Asked]:
    return [Asked(prompt, NEW_TOKENS, adapter=adapter) for prompt in prompts()]


def answers_of(runner: TorchRunner, name: str | None, chunk: int = 1000) -> list[list[int]]:
    return ToyScheduler(runner, chunk=chunk).answer(*asked(name))


@pytest.mark.parametrize("name", ADAPTERS)
def test_answers_are_those_of_peft(
    name: str, load: Load, checkpoint: Checkpoint, adapter: Adapter
) -> None:
    family, _ = ADAPTERS[name]
    runner = load(family)
    without = answers_of(runner, None)
    add(runner, name, adapter(name))

    answers = answers_of(runner, name, chunk=3)

    assert agrees(answers, expected(checkpoint(family), adapter(name)))
    assert answers != without


@pytest.fixture(params=[1024, 2], ids=["one by one", "all at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to go through a step with several adapters."""
    monkeypatch.setitem(lora.ONE_BY_ONE, "cpu", request.param)


@pytest.mark.usefixtures("way")
def test_adapters_and_the_model_itself_share_a_batch(
    load: Load, checkpoint: Checkpoint, adapter: Adapter
) -> None:
    names = ["attention", "everywhere", "patterns", "head"]
    runner = load("llama")
    alone = answers_of(runner, None)
    for name in names:
        add(runner, name, adapter(name))
    crowd = [asked(name) for name in (None, *names)]
    for i, each in enumerate(crowd):
        for one in each:
            one.joins_at = i

    answers = ToyScheduler(runner, chunk=5).answer(*(one for each in crowd for one in each))

    size = len(LENGTHS)
    assert answers[:size] == alone
    for i, name in enumerate(names, start=1):
        part = answers[i * size : (i + 1) * size]
        assert agrees(part, expected(checkpoint("llama"), adapter(name))), name


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("names", [["everywhere"], ["everywhere", "attention", "head", "patterns"]])
def test_rows_without_an_adapter_get_the_models_own_bits(
    names: list[str], load: Load, adapter: Adapter
) -> None:
    runner = load("llama")
    runner.set_kv_blocks(96)
    chosen = [None, *names, None, *names, None]
    mixed = [row(i, prompts()[i % 3], name) for i, name in enumerate(chosen)]
    plain = [each._replace(adapter=None) for each in mixed]
    before = logits(runner, plain)
    for name in names:
        add(runner, name, adapter(name))

    after, unmixed = logits(runner, mixed), logits(runner, plain)

    own = [i for i, name in enumerate(chosen) if name is None]
    assert torch.equal(unmixed, before)
    assert torch.equal(after[own], before[own])
    assert not torch.isclose(after, before).all(dim=-1)[1 : len(names) + 1].any()


def test_a_dropped_adapter_leaves_nothing_behind(load: Load, adapter: Adapter) -> None:
    runner = load("llama")
    before = answers_of(runner, None)
    add(runner, "one", adapter("everywhere"))
    add(runner, "two", adapter("attention"))
    with_two = answers_of(runner, "two")
    runner.adapters.drop("one")
    assert answers_of(runner, "two") == with_two
    runner.adapters.drop("two")
    runner.adapters.drop("two")

    assert answers_of(runner, None) == before
    hooks = [module for module in runner._model.modules() if module._forward_hooks]
    assert hooks == []


def test_a_row_whose_adapter_is_not_loaded_fails_alone(load: Load) -> None:
    runner = load("llama")
    runner.set_kv_blocks(96)
    rows = [row(0, prompts()[0], "none"), row(1, prompts()[1], None)]

    lost, drawn = runner.run(rows)

    assert isinstance(lost, EngineFailed)
    assert drawn == runner.run([rows[1]])[0]


def test_what_an_adapter_takes_is_known_from_its_headers(load: Load, adapter: Adapter) -> None:
    runner = load("llama")

    for name in ("everywhere", "patterns"):
        predicted = runner.adapters.size_bytes(adapter(name))
        assert predicted == runner.adapters.read(adapter(name)).size_bytes > 0


def row(index: int, prompt: list[int], adapter: str | None) -> Row:
    blocks = list(range(index * 8, index * 8 + 8))
    return Row(index, prompt, 0, blocks, GREEDY, 0, wants_token=True, adapter=adapter)


def logits(runner: TorchRunner, rows: list[Row]) -> torch.Tensor:
    from llmhost.engines.torch.layout import lay_out

    with torch.inference_mode():
        layout = lay_out(rows, block_tokens=16, device=runner.device)
        with runner.adapters.step([rows[i] for i in layout.order], layout):
            out = runner.forward(layout)
    assert out is not None
    return out[[layout.order.index(i) for i in range(len(rows))]]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "its peft_type is 'IA3'"),
        ({"bias": "all"}, "it trains biases"),
        ({"use_dora": True}, "it uses use_dora = True"),
        ({"modules_to_save": ["lm_head"]}, "it uses modules_to_save = ['lm_head']"),
        ({"brand_new": {"a": 1}}, "it uses brand_new"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base model"),
        ({"target_modules": ["q_proj"]}, "which its target_modules leave out"),
        ({"exclude_modules": ["v_proj"]}, "which its target_modules leave out"),
        ({"r": 5}, "its configuration says rank 5"),
        ({"r": 0}, "make no sense"),
        ({"r": float("inf")}, "makes no sense"),
        ({"lora_alpha": 10**400}, "makes no sense"),
        ({"rank_pattern": ["q_proj"]}, "makes no sense"),
        ({"rank_pattern": {"[": 3}}, "makes no sense"),
        ({"target_modules": "["}, "makes no sense"),
        ({"target_modules": 5}, "makes no sense"),
    ],
)
def test_what_would_be_run_otherwise_than_it_was_trained_is_refused_by_name(
    change: dict[str, Any], said: str, load: Load, adapter: Adapter, tmp_path: Path
) -> None:
    config = json.loads((adapter("attention") / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    weights = (adapter("attention") / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)

    with pytest.raises(ModelUnavailable) as caught:
        load("llama").adapters.read(tmp_path)

    assert said in caught.value.message


def test_numbers_that_could_spread_to_other_rows_are_refused(
    load: Load, adapter: Adapter, tmp_path: Path
) -> None:
    tensors = load_file(adapter("attention") / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("inf")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    shutil.copy(adapter("attention") / "adapter_config.json", tmp_path)

    with pytest.raises(ModelUnavailable, match="numbers in it that are not finite"):
        load("llama").adapters.read(tmp_path)


def test_an_adapter_of_another_model_is_refused(load: Load, adapter: Adapter) -> None:
    with pytest.raises(ModelUnavailable, match=r"is for another model: it adapts .*c_attn"):
        load("llama").adapters.read(adapter("conv"))
    with pytest.raises(ModelUnavailable, match=r"its .*q_proj goes from 64 to 64 numbers"):
        load("qwen3").adapters.read(adapter("attention"))


def test_a_folder_without_an_adapter_or_with_half_of_one_says_so(
    load: Load, adapter: Adapter, tmp_path: Path
) -> None:
    adapters = load("llama").adapters
    with pytest.raises(ModelUnavailable, match=r"has no adapter_config\.json"):
        adapters.read(tmp_path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (adapter("attention") / name).read_bytes()
        (tmp_path / name).write_bytes(data if name.endswith("json") else data[:-10])

    with pytest.raises(ModelUnavailable, match="is not a whole safetensors file"):
        adapters.read(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="has no adapter_model"):
        adapters.read(tmp_path)
