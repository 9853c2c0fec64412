"""What the engine's bench must ask torch: where a step's time goes, what the model moves, what the machine can do.

The floor of a step is the larger of two times: its bytes at the measured memory bandwidth, and its arithmetic at the
measured rate of one large matrix product (Williams, Waterman and Patterson: Roofline, 2009).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llmhost.engines.torch.narrow import NarrowLinear
from llmhost.engines.torch.runner import TorchRunner

_ROUNDS = 5
_STREAM_BYTES = 2**28
_SIDE = 2048


@dataclass(slots=True)
class Phases:
    """Nanoseconds of the current step, by the wall clock."""

    forward_ns: int = 0
    sample_ns: int = 0
    cpu_ns: int = 0
    """CPU time of this thread in both of them."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best of a few rounds on this machine, in the model's dtype."""

    bytes_per_s: float
    """Reading, or copying with both directions counted: whichever is faster."""
    flops_per_s: float


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What a forward pass has to move and compute at least."""

    weights_bytes: int
    """All weights but an input embedding that is only looked up."""
    token_flops: int
    """Matrix products of one token, attention and the last layer's logits left out."""
    logits_flops: int
    """Of one token whose logits are wanted."""
    kv_token_bytes: int
    """Keys and values of one position."""
    attention_flops: int
    """Of one token, for each position that it attends to."""


@contextmanager
def watched(runner: TorchRunner) -> Iterator[Phases]:
    """Time `runner`'s forward passes and sampling until the block ends."""
    phases, sampler = Phases(), runner.sampler
    forward, sample = runner.forward, sampler.sample

    def timed(call: Callable[..., Any], field: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            began, cpu = time.perf_counter_ns(), time.thread_time_ns()
            result = call(*args, **kwargs)
            _finish(runner.device)
            phases.cpu_ns += time.thread_time_ns() - cpu
            spent = time.perf_counter_ns() - began
            setattr(phases, field, getattr(phases, field) + spent)
            return result

        return wrapped

    runner.forward = timed(forward, "forward_ns")  # type: ignore[method-assign]
    sampler.sample = timed(sample, "sample_ns")  # type: ignore[method-assign]
    try:
        yield phases
    finally:
        del runner.forward, sampler.sample  # the instances'; the classes have their own


def model_work(runner: TorchRunner) -> ModelWork:
    """Exact for dense models; for a mixture of experts the weights of all experts count."""
    model: Any = runner._model
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    is_tied = embedding.data_ptr() == head.data_ptr()
    parameters = {weight.data_ptr(): weight for weight in model.parameters()}.values()
    narrow = [one for one in model.modules() if isinstance(one, NarrowLinear)]
    streamed = sum(weight.nbytes for weight in parameters)
    streamed += sum(kept.nbytes for one in narrow for kept in one.buffers())
    counted = sum(weight.numel() for weight in parameters)
    counted += sum(one.in_features * one.out_features for one in narrow)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelWork(
        weights_bytes=streamed - (0 if is_tied else embedding.nbytes),
        token_flops=2 * (counted - embedding.numel() - (0 if is_tied else head.numel())),
        logits_flops=2 * head.numel(),
        kv_token_bytes=runner.facts.kv_block_bytes // runner.facts.block_tokens,
        attention_flops=4 * config.num_hidden_layers * heads * head_dim,
    )


def facts_of(runner: TorchRunner) -> dict[str, Any]:
    """What was measured, for the report."""
    return {
        "device": runner.facts.device,
        "weights_bytes": runner.facts.weights_bytes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def measure_ceilings(runner: TorchRunner) -> Ceilings:
    device, dtype = runner.device, runner._model.dtype
    source = torch.ones(_STREAM_BYTES // 4, device=device)
    target = torch.empty_like(source)
    left = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype)
    with torch.inference_mode():
        read_s = _best(source.sum, device)
        copy_s = _best(lambda: target.copy_(source), device)
        matmul_s = _best(lambda: left @ left, device)
    return Ceilings(
        bytes_per_s=max(_STREAM_BYTES / read_s, 2 * _STREAM_BYTES / copy_s),
        flops_per_s=2 * _SIDE**3 / matmul_s,
    )


def _best(call: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        call()
        _finish(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
