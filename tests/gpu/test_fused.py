"""The fused layers on a real GPU, in the types that a GPU is used with, and inside a CUDA graph."""

import pytest
import torch
from tests.unit.engines.paged_steps import PagedSteps
from tests.unit.engines.test_torch_fused import TEXTS, fused, hidden_states, model_of
from tests.unit.kernels.test_layers import EPS, norm_in_torch, table_of, turned
from torch import Tensor
from torch.nn.functional import silu

from llmhost.engines.torch.fused_modules import fuse_modules
from llmhost.engines.torch.kernels.layers import add_rms_norm, rms_norm, rope_and_write, silu_mul

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = [torch.bfloat16, torch.float16]
TOKENS = [1, 33, 256]
BLOCK_TOKENS = 16


def nearly_all_equal(ours: Tensor, theirs: Tensor) -> None:
    """The same bits but for a few numbers, which fell to the other side of a rounding."""
    assert ours.dtype is theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.1)
    assert (ours == theirs).float().mean() > 0.995


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("hidden", [896, 4096, 8192])
def test_norms_round_as_transformers_does(dtype: torch.dtype, tokens: int, hidden: int) -> None:
    x, residual = random(2, tokens, hidden, dtype=dtype)
    weight, total = random(hidden, dtype=dtype), x + residual
    nearly_all_equal(rms_norm(x, weight, EPS), norm_in_torch(x, weight))
    nearly_all_equal(add_rms_norm(x, residual, weight, EPS), norm_in_torch(total, weight))
    assert residual.equal(total)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", TOKENS)
def test_gates_round_as_transformers_does(dtype: torch.dtype, tokens: int) -> None:
    gate_up = 3 * random(tokens, 2 * 14336, dtype=dtype)
    gate, up = gate_up.chunk(2, dim=-1)
    nearly_all_equal(silu_mul(gate_up), silu(gate) * up)


@pytest.mark.parametrize("cache_dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("has_norms", [False, True])
def test_queries_keys_and_values_are_those_of_transformers(
    cache_dtype: torch.dtype | None, dtype: torch.dtype, tokens: int, has_norms: bool
) -> None:
    heads, kv_heads, dim = 32, 8, 128
    qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    table = table_of(dim, dtype, positions=1000).cuda()
    positions = torch.randint(1000, (tokens,), device="cuda")
    slots = torch.randperm(20 * BLOCK_TOKENS, device="cuda")[:tokens]
    shape = (2, 20, BLOCK_TOKENS, kv_heads, dim)
    keys, values = torch.zeros(shape, dtype=cache_dtype or dtype, device="cuda")
    q_norm, k_norm = random(2, dim, dtype=dtype)
    query = torch.empty(tokens, heads, dim, dtype=dtype, device="cuda")
    norms = {"q_norm": q_norm, "k_norm": k_norm, "eps": EPS} if has_norms else {}
    rope_and_write(qkv, table, positions, slots, keys, values, query, **norms)

    q, k, v = qkv.view(tokens, -1, dim).split([heads, kv_heads, kv_heads], dim=1)
    if has_norms:
        q, k = norm_in_torch(q, q_norm), norm_in_torch(k, k_norm)
    nearly_all_equal(query, turned(q, table, positions))
    for cache, right in ((keys, turned(k, table, positions)), (values, v)):
        written = (
            cache.view(-1, kv_heads * dim).view(torch.uint8).view(20 * BLOCK_TOKENS, -1)[slots]
        )
        written = written.view(cache.dtype).view(right.shape)
        off = (written.float() - right.to(cache.dtype).float()).abs()
        assert (off == 0).float().mean() > 0.995
        assert (off <= 0.13 * right.float().abs() + 0.1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_hidden_states_are_near_those_of_transformers(family: str, dtype: torch.dtype) -> None:
    model = model_of(family).to("cuda", dtype)
    expected = [states.float() for states in near(model)]
    ours = PagedSteps(model, TEXTS).run(fused(model), chunks=(3, 1, 3))
    most = 1e-4 if dtype is torch.float32 else 0.1
    for states, right in zip(ours, expected, strict=True):
        assert (states.float() - right).norm() <= most * right.norm()


def near(model: torch.nn.Module) -> list[Tensor]:
    with torch.device("cuda"):
        return hidden_states(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_of_other_models_are_replaced(dtype: torch.dtype) -> None:
    model = model_of("granite").to("cuda", dtype)
    expected = near(model)[0].float()
    assert fuse_modules(model) == ["2 GraniteMLP", "5 GraniteRMSNorm"]
    most = 1e-4 if dtype is torch.float32 else 0.1
    assert (near(model)[0].float() - expected).norm() <= most * expected.norm()


def test_a_step_can_be_captured_in_a_graph() -> None:
    model = model_of("qwen3").to("cuda", torch.bfloat16)
    decoder, steps = fused(model), PagedSteps(model, TEXTS)
    ids, positions = torch.tensor([3, 200, 7, 0], device="cuda"), torch.arange(4, device="cuda")
    slots = torch.tensor([2, 5, 9, -1], device="cuda")

    def run() -> Tensor:
        seen = decoder.hidden(ids, positions, slots, steps.caches, lambda layer, query: query * 0.5)
        return decoder.logits(seen)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for step in range(3):
        ids.add_(step)
        positions.add_(1)
        graph.replay()
        alone = run()[:3].float()
        assert (captured[:3].float() - alone).norm() <= 0.02 * alone.norm()
