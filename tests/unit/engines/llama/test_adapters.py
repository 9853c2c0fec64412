"""LoRA adapters of GGUF models: the tokens that the torch engine says with them, in company and alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

import gguf
from tests.unit.engines.adapters import save_adapter
from tests.unit.engines.llama.gguf_files import write
from tests.unit.engines.llama.test_same_numbers import checkpoint
from tests.unit.engines.toy_scheduler import GREEDY, Asked, ToyScheduler

from llmhost.config.schema.engines import TorchOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import EngineFailed, ModelUnavailable
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Row
from llmhost.engines.llama.adapter_files import read_pairs
from llmhost.engines.llama.export import export
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.kind import LlamaKind
from llmhost.engines.llama.load import load_runner
from llmhost.engines.llama.runner import LlamaRunner
from llmhost.engines.llama.settings import LoadSettings
from llmhost.engines.torch.load import load_runner as load_torch

FACTS = RunnerFacts(
    device="cpu:0",
    vocab_size=0,
    max_sequence_length=512,
    block_tokens=16,
    kv_block_bytes=1,
    weights_bytes=0,
)
SETTINGS = LoadSettings(batch_tokens=256, rows=12, threads=1, kv_type="f32")
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "o_proj"]},
    "everywhere": {"r": 8, "lora_alpha": 12, "use_rslora": True, "target_modules": "all-linear"},
    "head": {"r": 3, "lora_alpha": 9, "target_modules": ["lm_head", "v_proj", "down_proj"]},
}
PROMPTS = [[(13 * at + 7 * n) % 2000 for n in range(length)] for at, length in enumerate((3, 40))]
NEW_TOKENS = 10


class Places:
    """A checkpoint, its GGUF file, and adapters of it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.checkpoint = folder / "model"
        checkpoint(self.checkpoint, kind, {})
        self.gguf = export(self.checkpoint, folder / "model.gguf", "f32", lambda *step: None).path
        self.adapters = {
            name: save_adapter(folder / name, self.checkpoint, seed=seed, **config)
            for seed, (name, config) in enumerate(ADAPTERS.items())
        }

    def load(self, layout: Any = "auto") -> LlamaRunner:
        settings = (
            SETTINGS
            if layout == "auto"
            else LoadSettings(batch_tokens=256, rows=12, threads=1, kv_type="f32", kv_layout=layout)
        )
        return load_runner(self.gguf, settings, FACTS)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return Places(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def wanted(places: Places) -> dict[str | None, list[list[int]]]:
    """What the torch engine says with each."""
    return torch_answers(places)


def torch_answers(places: Places) -> dict[str | None, list[list[int]]]:
    runner = load_torch(places.checkpoint, block_tokens=16, options=TorchOptions(threads=1))
    for name, folder in places.adapters.items():
        runner.adapters.add(name, runner.adapters.read(folder))
    return {name: answers(runner, name) for name in (None, *places.adapters)}


@pytest.fixture
def runner(places: Places) -> Iterator[LlamaRunner]:
    runner = places.load()
    yield runner
    runner.close()


def asked(name: str | None) -> list[Asked]:
    return [Asked(prompt, NEW_TOKENS, adapter=name) for prompt in PROMPTS]


def answers(runner: Any, name: str | None) -> list[list[int]]:
    return ToyScheduler(runner, chunk=7).answer(*asked(name))


def add(runner: LlamaRunner, name: str, place: Path) -> None:
    runner.adapters.add(name, runner.adapters.read(place))


@pytest.mark.parametrize("layout", ["unified", "partitioned"])
def test_adapters_and_the_model_itself_share_a_step(
    places: Places, wanted: dict[str | None, list[list[int]]], layout: str
) -> None:
    runner = places.load(layout)
    for name, folder in places.adapters.items():
        add(runner, name, folder)
    crowd = [one for name in wanted for one in asked(name)]
    for at, one in enumerate(crowd):
        one.joins_at = at // 3

    found = ToyScheduler(runner, blocks=200, chunk=9).answer(*crowd)

    assert found == [answer for name in wanted for answer in wanted[name]]
    assert len({str(each) for each in wanted.values()}) == len(wanted)
    runner.close()


def test_a_model_whose_queries_are_not_turned_runs_them_too(tmp_path: Path) -> None:
    places = Places(tmp_path, "qwen3")
    runner = places.load()
    for name, folder in places.adapters.items():
        add(runner, name, folder)

    assert {name: answers(runner, name) for name in (None, *ADAPTERS)} == torch_answers(places)
    runner.close()


def test_a_dropped_adapter_leaves_nothing_behind_and_may_come_again(
    runner: LlamaRunner, places: Places, wanted: dict[str | None, list[list[int]]]
) -> None:
    for name in ("attention", "everywhere", "attention"):
        add(runner, name, places.adapters[name])
        assert answers(runner, name) == wanted[name]
        runner.adapters.drop(name)
        runner.adapters.drop(name)
        assert answers(runner, None) == wanted[None]


def test_a_row_whose_adapter_is_not_loaded_fails_alone(
    runner: LlamaRunner, wanted: dict[str | None, list[list[int]]]
) -> None:
    runner.set_kv_blocks(40)
    rows = [
        Row(at, prompt, 0, [*range(at * 8, at * 8 + 8)], GREEDY, 0, wants_token=True, adapter=name)
        for at, (prompt, name) in enumerate(zip(PROMPTS, ("none", None), strict=True))
    ]

    lost, drawn = runner.run(rows)

    assert isinstance(lost, EngineFailed)
    assert drawn == wanted[None][1][0]


def test_what_an_adapter_takes_is_known_from_its_headers(places: Places, tmp_path: Path) -> None:
    model = read_header(places.gguf)
    path = write_adapter(tmp_path / "a.gguf", places, "everywhere")
    for place in (places.adapters["everywhere"], path):
        predicted = LlamaKind().adapter_bytes(ModelSpec(), places.gguf, place)
        pairs = read_pairs(place, model)
        assert predicted == sum(pair.a.nbytes + pair.b.nbytes for pair in pairs) > 0


# ---------------------------------------------------------------- GGUF files of adapters


def write_adapter(
    path: Path,
    places: Places,
    name: str,
    *,
    architecture: str = "llama",
    alpha: Any = 8.0,
    kind: str = "adapter",
    rename: str | None = None,
    poison: bool = False,
    more: dict[str, Any] | None = None,
) -> Path:
    """As llama.cpp's converter writes one: the scale is apart from the matrices."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in (more or {}).items():
        writer.add_array(key, value)
    pairs = read_pairs(places.adapters[name], read_header(places.gguf))
    for at, pair in enumerate(pairs):
        b = pair.b * np.float32(len(pair.a) / alpha)
        if poison and not at:
            b[0, 0] = np.nan
        target = rename if rename and not at else pair.tensor
        writer.add_tensor(f"{target}.lora_a", pair.a)
        writer.add_tensor(f"{target}.lora_b", b.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_of_an_adapter_says_the_same(
    runner: LlamaRunner,
    places: Places,
    wanted: dict[str | None, list[list[int]]],
    tmp_path: Path,
) -> None:
    for name in ("attention", "everywhere"):
        add(runner, name, write_adapter(tmp_path / f"{name}.gguf", places, name))
        assert answers(runner, name) == wanted[name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "qwen3"}, "it is for models of 'qwen3', and this one is of 'llama'"),
        ({"kind": "model"}, "its general.type is 'model'"),
        ({"rename": "blk.0.ffn_norm.weight"}, "adds nothing to blk.0.ffn_norm.weight"),
        ({"rename": "token_embd.weight"}, "adds nothing to token_embd.weight"),
        ({"rename": "blk.9.attn_q.weight"}, "this one has no matrix blk.9.attn_q.weight"),
        ({"rename": "blk.0.ffn_down.weight"}, "and the model's goes from 96 to 64"),
        ({"poison": True}, "not finite"),
        ({"more": {"adapter.alora.invocation_tokens": [1, 2]}}, "certain tokens activate"),
    ],
)
def test_what_llama_cpp_would_stumble_over_is_refused_by_name(
    runner: LlamaRunner, places: Places, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", places, "attention", **change)

    with pytest.raises(ModelUnavailable) as caught:
        runner.adapters.read(path)

    assert said in caught.value.message


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        ({"general.type": [1, 2]}, ((64, 2), (2, 64))),
        ({"adapter.type": [1.0, 2.0]}, ((64, 2), (2, 64))),
        ({"general.architecture": [1, 2]}, ((64, 2), (2, 64))),
        ({}, ((64, 0), (0, 64))),
        ({}, ((64, 2), (0, 64))),
        ({}, ((64, 2), (2, 0))),
    ],
)
def test_a_file_that_lies_is_refused(
    places: Places,
    tmp_path: Path,
    change: dict[str, Any],
    shapes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    said = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    path = write(
        tmp_path / "a.gguf",
        {**said, "adapter.lora.alpha": 4.0, **change},
        [
            (f"blk.0.attn_q.weight.lora_{half}", shape, 0, bytes(4 * shape[0] * shape[1]))
            for half, shape in zip("ab", shapes, strict=True)
        ],
    )

    with pytest.raises(ModelUnavailable, match="can't be served"):
        read_pairs(path, read_header(places.gguf))


@pytest.mark.parametrize("shape", [(-2, -64), (2.0, 64.0)])
def test_matrices_of_impossible_sizes_are_refused(
    places: Places, tmp_path: Path, shape: tuple[float, float]
) -> None:
    config = {"peft_type": "LORA", "r": shape[0], "target_modules": "all-linear"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    name, size = "model.layers.0.self_attn.q_proj.lora", 4 * 2 * 64
    header = {
        f"{name}_A.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
        f"{name}_B.weight": {
            "dtype": "F32",
            "shape": shape[::-1],
            "data_offsets": [size, 2 * size],
        },
    }
    raw = json.dumps(header).encode()
    content = len(raw).to_bytes(8, "little") + raw + bytes(2 * size)
    (tmp_path / "adapter_model.safetensors").write_bytes(content)

    with pytest.raises(ModelUnavailable):
        read_pairs(tmp_path, read_header(places.gguf))


def test_a_folder_with_neither_kind_says_what_an_adapter_is(
    runner: LlamaRunner, tmp_path: Path
) -> None:
    with pytest.raises(ModelUnavailable, match="a GGUF file, or a folder as PEFT saves it"):
        runner.adapters.read(tmp_path)
