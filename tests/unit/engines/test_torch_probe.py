"""What a model asks of attention is found when it is loaded; what ours does not have is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.unit.engines.checkpoints import WINDOW, save_checkpoint
from torch import Tensor, nn
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)
from transformers.models.llama import modeling_llama

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch.load import load_runner
from llmhost.engines.torch.probe import Mask, Rule, Unservable, window_of
from llmhost.engines.torch.runner import TorchRunner


def load(folder: Path) -> TorchRunner:
    return load_runner(folder, block_tokens=16, options=TorchOptions(device="cpu"))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path, "llama")


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", [None, None, None]),
        ("mistral_window", [WINDOW] * 3),
        ("gemma2", [WINDOW, None, WINDOW]),
        ("gpt_oss", [WINDOW, None, WINDOW, None]),
        ("qwen2_window", [None, WINDOW, WINDOW]),
        # Its layers say nothing of their window: it is in the mask alone.
        ("phimoe", [WINDOW] * 3),
    ],
)
def test_windows_are_those_of_the_masks(
    family: str, windows: list[int | None], tmp_path: Path
) -> None:
    assert load(save_checkpoint(tmp_path, family)).windows == windows


def test_a_window_that_the_longest_text_fits_into_is_none(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "mistral", sliding_window=512)
    assert load(tmp_path).windows == [None] * 3


def sees(rule: Callable[..., Tensor], longest: int = 5000) -> int | None:
    return window_of(0, Mask(torch.zeros(1), rule), longest)


def test_a_rule_is_read_far_beyond_the_tokens_that_were_run() -> None:
    assert sees(causal_mask_function) is None
    for window in (1, 7, 4095, 4096, 4999):
        assert sees(sliding_window_causal_mask_function(window)) == window
    assert sees(sliding_window_causal_mask_function(5000)) is None


def forgets_its_first(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((key > 3) | (query < 4000))


def short_table(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return torch.ones(24, dtype=torch.bool)[key]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (chunked_causal_mask_function(4096, torch.zeros(1, dtype=torch.long)), "sees other positions"),
        (chunked_causal_mask_function(2, torch.zeros(1, dtype=torch.long)), "sees other positions"),
        (forgets_its_first, "sees other positions"),
        (bidirectional_mask_function, "after its own"),
        (short_table, "does not hold for any position"),
        (None, "of the model's own making"),
    ],
)  # fmt: skip
def test_a_rule_that_is_no_window_is_refused(rule: Rule, message: str) -> None:
    with pytest.raises(Unservable, match=message):
        sees(rule)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("diffllama", "layer 0 attends 2 times"),
        ("doge", "layer 0 has a mask of the model's own making"),
        ("falcon_alibi", "ALiBi"),
        ("mimo_v2_flash", "layers of different sizes"),
        # Encoders that can decode attend both ways until their config says that they decode.
        ("bert", "after its own"),
    ],
)
def test_what_paged_attention_lacks_is_refused_by_name(
    family: str, message: str, tmp_path: Path
) -> None:
    changes = {"is_decoder": False} if family == "bert" else {}
    save_checkpoint(tmp_path, family, **changes)
    with pytest.raises(ModelUnavailable, match=message):
        load(tmp_path)


def test_a_cache_that_drops_what_the_mask_shows_is_refused(llama: Path) -> None:
    """As Moshi's: transformers answers otherwise with its cache than without."""
    path = llama / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sliding_window": WINDOW}))
    with pytest.raises(ModelUnavailable, match=r"layer 0 keeps 20 positions, .* lets it see all"):
        load(llama)


def patched(monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    """Llama's layers with `change` made to what goes into them."""
    own = modeling_llama.LlamaDecoderLayer.forward

    def forward(self: nn.Module, hidden: Tensor, **kwargs: Any) -> Tensor:
        return own(self, *change(hidden, kwargs), **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", forward)


def test_a_layer_that_looks_at_the_token_before_is_found(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As convolutions and token shifts do: rows would leak into each other."""
    patched(monkeypatch, lambda hidden, _: (hidden + hidden.roll(1, dims=1),))
    with pytest.raises(ModelUnavailable, match="other logits over the paged KV cache"):
        load(llama)


def test_a_layer_that_counts_the_tokens_of_the_step_is_found(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched(monkeypatch, lambda hidden, _: (hidden * hidden.shape[1],))
    with pytest.raises(ModelUnavailable, match="other logits over the paged KV cache"):
        load(llama)


def test_positions_that_matter_only_far_from_the_beginning_are_looked_at(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Llama 4's temperature: a scale by position that is 1 in short texts."""

    def scaled(hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor]:
        is_far = kwargs["position_ids"][..., None] > 400
        is_ours = kwargs["attention_mask"] is None
        return (hidden * torch.where(is_far & is_ours, 1.5, 1.0),)

    patched(monkeypatch, scaled)
    with pytest.raises(ModelUnavailable, match="other logits at position 488"):
        load(llama)


def test_an_argument_that_nobody_knows_is_refused(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def biased(hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor]:
        kwargs["position_bias"] = hidden
        return (hidden,)

    patched(monkeypatch, biased)
    with pytest.raises(ModelUnavailable, match="layer 0 needs position_bias"):
        load(llama)


def test_attention_that_can_not_be_switched_is_not_compared_with_itself(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        transformers.LlamaForCausalLM,
        "_can_set_attn_implementation_cached_value",
        False,
        raising=False,
    )
    with pytest.raises(ModelUnavailable, match="can't be switched"):
        load(llama)
