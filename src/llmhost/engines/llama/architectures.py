"""Checkpoints of transformers as llama.cpp knows them: names of tensors, and settings. Pure but for its numpy.

Four architectures, in the forms that both sides compute alike; another one is refused by name, and so is a setting that
llama.cpp has no word for. Each was compared in numbers with the torch engine.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmhost.core.errors import ModelUnavailable

KNOWN = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architectures that can be written, and what llama.cpp calls them."""

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_FORGOTTEN = re.compile(r"rotary_emb\.inv_freq$")
"""Tensors of old checkpoints that say nothing that their config does not."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A checkpoint's config, as far as it is understood."""

    name: str
    """In llama.cpp's words."""
    config: Mapping[str, Any]

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    @property
    def is_tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))

    def settings(self) -> Iterator[tuple[str, int | float | str]]:
        """Keys of the file's metadata, integers as uint32 and floats as float32."""
        config, name = self.config, self.name
        yield f"{name}.block_count", int(config["num_hidden_layers"])
        yield f"{name}.context_length", self.context_length
        yield f"{name}.embedding_length", int(config["hidden_size"])
        yield f"{name}.feed_forward_length", int(config["intermediate_size"])
        yield f"{name}.attention.head_count", self.heads
        yield f"{name}.attention.head_count_kv", self.kv_heads
        yield f"{name}.attention.key_length", self.head_size
        yield f"{name}.attention.value_length", self.head_size
        yield f"{name}.attention.layer_norm_rms_epsilon", float(config.get("rms_norm_eps", 1e-6))
        yield f"{name}.rope.dimension_count", self.head_size
        yield f"{name}.rope.freq_base", float(self._rope.get("rope_theta") or 10000.0)
        yield f"{name}.vocab_size", int(config["vocab_size"])
        yield from self._scaling()

    @property
    def context_length(self) -> int:
        """What the model was made for, and no more than a window beyond which llama.cpp would see too much."""
        length = int(self.config["max_position_embeddings"])
        has_window = self.config.get("use_sliding_window", self.name == "llama")
        window = self.config.get("sliding_window") if has_window else None
        return min(length, int(window)) if window else length

    def renamed(self, name: str) -> str | None:
        """What llama.cpp calls a tensor; None for one that is not needed. Raises ModelUnavailable."""
        if name == "lm_head.weight" and self.is_tied:
            return None
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        if _FORGOTTEN.search(name):
            return None
        layer = _LAYER.fullmatch(name)
        if layer is None or layer[2] not in _INSIDE:
            raise ModelUnavailable(
                f"The checkpoint has a tensor {name!r}, which models of {self.config['architectures'][0]} have no"
                " place for. It may be of another architecture, quantised, or an adapter's."
            )
        return f"blk.{layer[1]}.{_INSIDE[layer[2]]}.{layer[3]}"

    def turned(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """A tensor by its new name in llama.cpp's order: Llama's queries and keys pair neighbours, not halves."""
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(name.split(".")[-2])
        if self.name != "llama" or heads is None:
            return tensor
        rest = tensor.shape[1:]
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *rest)
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))

    def extra_tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Those that no checkpoint has: Llama 3.1 divides its slow frequencies, as a table here."""
        if self._rope_type == "llama3":
            yield "rope_freqs.weight", self._divided()

    @property
    def _rope(self) -> Mapping[str, Any]:
        """Newer configs have everything of the rotary embedding in one place."""
        theta = {"rope_theta": self.config.get("rope_theta")}
        return {
            **theta,
            **(self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}),
        }

    @property
    def _rope_type(self) -> str:
        return str(self._rope.get("rope_type") or self._rope.get("type") or "default")

    def _scaling(self) -> Iterator[tuple[str, int | float | str]]:
        rope, kind, key = self._rope, self._rope_type, f"{self.name}.rope.scaling"
        if kind in ("default", "llama3"):
            return
        if kind not in ("linear", "yarn"):
            raise ModelUnavailable(
                f"The checkpoint scales its rotary embedding by {kind!r}, which can't be written to a GGUF file;"
                " default, linear, llama3 and yarn can."
            )
        yield f"{key}.type", kind
        yield f"{key}.factor", float(rope["factor"])
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings")
            yield (
                f"{key}.original_context_length",
                int(original or self.config["max_position_embeddings"]),
            )
            if (attention := rope.get("attention_factor")) is not None:
                # llama.cpp multiplies this with the factor that it computes itself.
                usual = 0.1 * math.log(float(rope["factor"])) + 1.0
                yield f"{key}.attn_factor", float(attention) / usual
            for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
                if rope.get(ours) is not None:
                    yield f"{key}.{theirs}", float(rope[ours])

    def _divided(self) -> NDArray[np.float32]:
        """Divisors of the frequencies, from https://arxiv.org/abs/2407.21783 as transformers computes them."""
        rope, size = self._rope, self.head_size
        factor, low, high = (
            float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        length = float(rope["original_max_position_embeddings"])
        theta = float(rope.get("rope_theta") or 10000.0)
        waves = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
        smooth = (length / waves - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        divisors = np.where(waves > length / low, factor, between)
        return np.where(waves < length / high, 1.0, divisors).astype(np.float32)


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Raises ModelUnavailable for what can't be written, by name."""
    names = config.get("architectures") or [config.get("model_type") or "none"]
    if names[0] not in KNOWN:
        raise ModelUnavailable(
            f"Checkpoints of {names[0]} can't be written to GGUF files; those of {', '.join(KNOWN)} can."
            " llama.cpp's own converter knows more."
        )
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise ModelUnavailable(
            f"The checkpoint is quantised ({method}). Name the one that it was made from; --type quantises it."
        )
    architecture = Architecture(KNOWN[names[0]], {**config, "architectures": names})
    act = config.get("hidden_act", "silu")
    if act != "silu":
        raise ModelUnavailable(
            f"The checkpoint's MLP has {act!r}, and llama.cpp computes 'silu' for it."
        )
    try:
        list(architecture.settings())
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelUnavailable(
            f"The checkpoint's config.json lacks what a GGUF file must say, or has it wrong: {error!r}."
        ) from error
    return architecture
