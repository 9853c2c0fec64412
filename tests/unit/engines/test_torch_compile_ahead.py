"""What is compiled ahead can be launched, and what can't be is no reason not to load."""

import tests.unit.kernels.interpreting  # noqa: F401
import torch
import transformers

from llmhost.engines.torch.compile_ahead import CompileAhead, launches_of

CPU = torch.device("cpu")


def test_everything_that_is_launched_ahead_can_be_launched() -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_attention_heads=4
    )
    launches = launches_of(
        config, kv_heads=2, head_dim=8, block_tokens=8, dtype=torch.float16, device=CPU
    )
    assert len(launches) >= 10
    for launch in launches:
        launch()


def test_a_failure_is_left_to_whoever_needs_it() -> None:
    done = []

    def fail() -> None:
        raise RuntimeError("no compiler")

    ahead = CompileAhead([fail, lambda: done.append(1)])
    ahead.wait()
    assert done == [1]
    CompileAhead(()).wait()
