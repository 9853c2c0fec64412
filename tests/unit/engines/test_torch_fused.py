"""The fused decoder against transformers' own forward pass, in float32.

Triton's interpreter runs its kernels, or a GPU does where there is one.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
import transformers
from tests.unit.engines.checkpoints import config_of
from tests.unit.engines.paged_steps import PagedSteps
from torch import Tensor, nn

from llmhost.engines.torch.fused import FusedDecoder
from llmhost.engines.torch.projections import PlainProjection

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with llama3 angles": ("llama", {"rope_parameters": LLAMA3}),
    "llama with yarn": ("llama", {"rope_parameters": YARN}),
    "llama with linear angles": ("llama", {"rope_parameters": LINEAR}),
    "llama with one word matrix": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "seed_oss": ("seed_oss", {}),
    "ministral": ("ministral", {}),
    "cwm": ("cwm", {}),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma": ("gemma", {}),
    "gpt2": ("gpt2", {}),
    "granite": ("granite", {}),
    "ministral3": ("ministral3", {}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "smollm3": ("smollm3", {}),
    "llama that depends on the length": ("llama", {"rope_parameters": DYNAMIC}),
    "llama with another gate": ("llama", {"hidden_act": "gelu"}),
}
TEXTS = [
    [(41 * place + 7 * text) % 256 for place in range(size)] for text, size in enumerate((5, 2, 3))
]
LONGEST = 64
TOLERANCE = 1e-4 if torch.cuda.is_available() else 1e-5


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    torch.set_num_threads(1)  # the interpreter's arrays are small
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def model_of(family: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    config = config_of(family, num_hidden_layers=2, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for module in model.modules():  # which transformers starts at one and at zero
        if "Norm" in type(module).__name__:
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return model.eval().requires_grad_(False)


def fused(model: Any, longest: int = LONGEST) -> FusedDecoder:
    decoder = FusedDecoder.of(model, longest)
    assert decoder is not None
    return decoder


def hidden_states(model: Any) -> list[Tensor]:
    return [model.model(torch.tensor([text])).last_hidden_state[0] for text in TEXTS]


@pytest.mark.parametrize("name", KNOWN)
def test_hidden_states_are_those_of_transformers(name: str) -> None:
    family, changes = KNOWN[name]
    model = model_of(family, **changes)
    expected = hidden_states(model)
    states = PagedSteps(model, TEXTS).run(fused(model), chunks=(3, 1, 3))
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_left_alone(name: str) -> None:
    family, changes = OTHERS[name]
    model = model_of(family, **changes)
    before = {key: weight.data_ptr() for key, weight in model.named_parameters()}
    assert FusedDecoder.of(model, LONGEST) is None
    assert before == {key: weight.data_ptr() for key, weight in model.named_parameters()}


def test_logits_are_those_of_the_models_head() -> None:
    for changes in ({}, {"tie_word_embeddings": True}):
        model = model_of("llama", **changes)
        states = torch.randn(2, 64)
        assert fused(model).logits(states).equal(model.lm_head(states))


def test_transformers_modules_share_the_merged_weights() -> None:
    model = model_of("llama", attention_bias=True)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    expected = hidden_states(model)
    decoder = fused(model)
    assert all(weight.equal(before[key]) for key, weight in model.state_dict().items())
    for ours, theirs in zip(hidden_states(model), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    qkv = decoder.layers[0].qkv
    assert isinstance(qkv, PlainProjection) and qkv.bias is not None
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight.data.fill_(5.0)
    attention.v_proj.bias.data.fill_(6.0)
    assert (qkv.weight[64:96] == 5).all() and (qkv.bias[96:] == 6).all()


def test_merged_weights_are_in_memory_once() -> None:
    model = model_of("qwen3")
    parameters = {weight.data_ptr(): weight.nbytes for weight in model.parameters()}
    fused(model)
    storages = [weight.untyped_storage() for weight in model.parameters()]
    assert sum({one.data_ptr(): one.nbytes() for one in storages}.values()) == sum(
        parameters.values()
    )


def test_a_model_that_is_fused_again_keeps_its_weights_where_they_are() -> None:
    model = model_of("llama")
    fused(model)
    before = [weight.data_ptr() for weight in model.parameters()]
    states = PagedSteps(model, TEXTS).run(fused(model), chunks=(5, 2, 3))
    assert before == [weight.data_ptr() for weight in model.parameters()]
    torch.testing.assert_close(states[0], hidden_states(model)[0], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_projection_can_be_replaced() -> None:
    class Doubled(PlainProjection):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * super().__call__(x)

    model = model_of("llama")
    decoder = fused(model)
    down = decoder.layers[1].down
    assert isinstance(down, PlainProjection)
    decoder.layers[1].down = Doubled(down.weight)
    states = PagedSteps(model, TEXTS).run(decoder, chunks=(5, 2, 3))
    model.model.layers[1].mlp.down_proj.weight.data.mul_(2)
    torch.testing.assert_close(states[0], hidden_states(model)[0], rtol=TOLERANCE, atol=TOLERANCE)


def test_angles_of_many_positions_are_those_that_the_model_would_compute() -> None:
    model = model_of("llama", rope_parameters=LLAMA3)
    table = fused(model, 20_000).table
    places = torch.tensor([[0, 8191, 8192, 16_384, 19_999]])
    cos, sin = model.model.rotary_emb(table, places)
    assert table[places[0]].equal(torch.stack([cos[0, :, :8], sin[0, :, :8]], dim=1))
