"""What the benchmark and a server launch on the shape of Llama 3.1 8B, gone through with one layer and without a GPU.

Nothing is computed: products are zeros, and launches compile in place of running (`tests.gpu.ahead`).
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from tests.gpu import engine
from tests.gpu.ahead import MULTIPROCESSORS, SHARED_BYTES, compiled_only
from tests.gpu.models import SHAPES
from torch import Tensor

from llmhost.core.sampling import Sampling
from llmhost.engines.torch import load, random_model
from llmhost.engines.torch.compile_ahead import launches_of
from llmhost.engines.torch.fp8 import Fp8Projection
from llmhost.engines.torch.kernels import attention, quantise, skinny
from llmhost.engines.torch.random_model import RandomShape
from llmhost.engines.torch.runner import TorchRunner

CPU = torch.device("cpu")
BLOCK_TOKENS = 16
BATCHES = (1, 4, 32, 256)
PROMPTS = (1, 250, 2048)
CONTEXT = 64
SAMPLED = Sampling(temperature=0.8, top_p=0.95)
KINDS: tuple[dict[str, str], ...] = ({}, {"weights": "fp8", "kv_dtype": "fp8"})


def walk() -> None:
    """Everything once; draws give whatever lies in memory, and nobody looks at them."""
    shape = replace(SHAPES["8b"], layers=1)
    with as_on_a_gpu():
        for kind in KINDS:
            _ahead(shape, kind)
            runner = random_model.random_runner(
                shape, device=CPU, block_tokens=BLOCK_TOKENS, **kind
            )
            _steps(runner)
            runner.close()


def missed(shape: RandomShape) -> list[str]:
    """What steps launch that is not compiled ahead when a model is loaded."""
    found: list[str] = []
    with as_on_a_gpu(), compiled_only(compiles=False) as launched:
        for kind in KINDS:
            runner = random_model.random_runner(
                shape, device=CPU, block_tokens=BLOCK_TOKENS, **kind
            )
            launched.clear()
            _ahead(shape, kind)
            known = set(launched)
            _steps(runner)
            runner.close()
            found += [f"{kind}: {line}" for line in launched if line not in known]
    return found


def _ahead(shape: RandomShape, kind: Mapping[str, str]) -> None:
    for launch in launches_of(
        random_model._config(shape),
        kv_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        block_tokens=BLOCK_TOKENS,
        dtype=torch.bfloat16,
        device=CPU,
        **kind,
    ):
        launch()


def _steps(runner: TorchRunner) -> None:
    for batch in BATCHES:
        for sampling in (engine.GREEDY, SAMPLED):
            decoders = engine.Decoders(runner, batch, CONTEXT, 8, sampling)
            runner.run(decoders.rows)
    for tokens in PROMPTS:
        runner.run([engine.prompt_row(runner, tokens)])
    decoders = engine.Decoders(runner, 32, CONTEXT + 512, 8)
    runner.run(engine.with_prompt(decoders, 512))
    runner.run(engine.with_prompt(decoders, 4))
    several = [
        engine._prompt(runner, 128, row.blocks)._replace(seq_id=row.seq_id)
        for row in decoders.rows[:3]
    ]
    runner.run(several)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """CPU tensors are taken for a GPU's where it makes a difference to what is launched."""
    with ExitStack() as stack:
        for owner, name, new in (
            (load, "has_kernels", lambda device: True),
            (random_model, "has_kernels", lambda device: True),
            (load, "_prove", lambda *_: None),
            (random_model, "_draw_weights", _zero_weights),
            (engine, "_draw", lambda part: None),
            (attention, "_multiprocessors", lambda device: MULTIPROCESSORS),
            (attention, "_shared_bytes", lambda device: SHARED_BYTES),
            (Fp8Projection, "_on_cpu", _fp8_launches),
            (torch.nn.functional, "linear", _zeros),
        ):
            stack.enter_context(mock.patch.object(owner, name, new))
        stack.enter_context(mock.patch.object(torch.Tensor, "is_cuda", True, create=True))
        yield


def _zero_weights(model: Any, rng: Any, device: torch.device) -> None:
    for module in model.modules():
        for name, blank in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros_like(blank, device=device)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))


def _zeros(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_zeros(*x.shape[:-1], len(weight))


def _fp8_launches(self: Fp8Projection, x: Tensor, is_few: bool) -> Tensor:
    if is_few:
        return skinny.skinny_linear(x, self.weight, scale=self.scale, bias=self.bias)
    quantise.quantise_rows(x)
    return _zeros(x, self.weight)
