"""The decoder that most open models share, with its elementwise parts in a few kernels.

It stands for the layers of Llama, Mistral, Qwen and their like between token ids and logits, uses their own weights and
rounds where they round. transformers' modules stay usable beside it. It knows neither rows nor blocks: where keys and
values go comes in `slots`, and attention over them is the caller's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.merged import can_merge, merge
from llmhost.engines.torch.narrow import whole_of
from llmhost.engines.torch.projections import PlainProjection, Projection

FAMILIES = frozenset(
    {
        "CwmForCausalLM", "LlamaForCausalLM", "MinistralForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM",
        "Qwen3ForCausalLM", "SeedOssForCausalLM",
    }
)  # fmt: skip
"""Classes of transformers. Not by their parts alone: some models with the same ones do something else with them, and
some only at later positions or in later layers."""
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Angles depend on the position only, and not on how long the text is."""
_TABLE_STEP = 8192
"""Positions whose angles are computed at once."""
_LAYER_PARTS = {"input_layernorm", "mlp", "post_attention_layernorm", "self_attn"}
_MLP_PARTS = {"act_fn", "down_proj", "gate_proj", "up_proj"}
_ATTENTION_PARTS = {"k_proj", "o_proj", "q_proj", "v_proj"}
_HEAD_NORMS = {"k_norm", "q_norm"}

Attend = Callable[[int, Tensor], Tensor]
"""Of a layer and its queries [T, heads, dim], once the layer's keys and values are in the cache: what they see, of the
same shape."""


@dataclass(slots=True)
class Norm:
    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> "Norm":
        return cls(module.weight.data, float(module.variance_epsilon))


@dataclass(slots=True)
class FusedLayer:
    """One layer. Its projections may be replaced by others over the same weights."""

    qkv: Projection
    """Queries of all heads, then keys, then values."""
    o: Projection
    gate_up: Projection
    """The gate's numbers, then those that it lets through."""
    down: Projection
    before_attention: Norm
    before_mlp: Norm
    q_norm: Norm | None = None
    k_norm: Norm | None = None


class Places(NamedTuple):
    """Where tokens stand: [T] each."""

    positions: Tensor
    slots: Tensor
    """block * block_tokens + offset; negative is padding."""
    query: Tensor | None = None
    """Where queries are left, [T, heads, dim]; None makes room each time."""


class FusedDecoder:
    """A model's layers, embedding, last norm and head. Everything here can be captured in a CUDA graph."""

    def __init__(
        self, *, layers: list[FusedLayer], table: Tensor, heads: int, embedding: Tensor, norm: Norm
    ) -> None:
        # Here, because Triton need not be where no model is fused.
        from llmhost.engines.torch.kernels import layers as kernels

        self.layers = layers
        self.table = table
        """[positions, 2, dim / 2]: cosines and sines."""
        self.heads = heads
        self.head: Projection = PlainProjection(embedding)
        self.embedding = embedding
        """[vocabulary, H]"""
        self._norm = norm
        self._kernels = kernels

    @classmethod
    def of(cls, model: Any, longest: int) -> "FusedDecoder | None":
        """The decoder of a loaded transformers model for positions below `longest`; None if it is not of its kind.

        The model's parameters become views of merged ones; nothing else of the model changes.
        """
        if not _is_known(model):
            return None
        with torch.inference_mode(mode=False), torch.no_grad():
            base = model.model
            decoder = cls(
                layers=[_layer(one) for one in base.layers],
                table=_table(base.rotary_emb, longest, base.embed_tokens.weight),
                heads=model.config.num_attention_heads,
                embedding=base.embed_tokens.weight.data,
                norm=Norm.of(base.norm),
            )
            decoder.head = PlainProjection(model.lm_head.weight.data)
        return decoder

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        caches: Sequence[KeyValue],
        attend: Attend,
    ) -> Tensor:
        """input_ids, positions and slots, [T] each -> [T, H], as the model's head reads it.

        Keys and values are written to `caches`, one for each layer, at `slots` (block * block_tokens + offset). A place
        whose slot is negative is padding: its id must be one of the vocabulary, and what comes out means nothing.
        """
        places = Places(positions, slots)
        residual = self.embed(input_ids)
        x = self.before(residual, places, caches)
        for number in range(len(self.layers)):
            x = self.after(number, attend(number, x), residual, places, caches)
        return x

    def embed(self, input_ids: Tensor) -> Tensor:
        """[T] -> [T, H]: what `before` and `after` go on to add to."""
        return F.embedding(input_ids, self.embedding)

    def before(self, residual: Tensor, places: "Places", caches: Sequence[KeyValue]) -> Tensor:
        """What comes before the first attention; returns its queries [T, heads, dim]."""
        first = self.layers[0].before_attention
        x = self._kernels.rms_norm(residual, first.weight, first.eps)
        return self._queries(0, x, places, caches)

    def after(
        self,
        number: int,
        attended: Tensor,
        residual: Tensor,
        places: "Places",
        caches: Sequence[KeyValue],
    ) -> Tensor:
        """What comes after a layer's attention; returns the next one's queries, or after the last the hidden states
        [T, H]."""
        layer, kernels = self.layers[number], self._kernels
        x = layer.o(attended.flatten(1))
        x = kernels.add_rms_norm(x, residual, layer.before_mlp.weight, layer.before_mlp.eps)
        x = layer.down(kernels.silu_mul(layer.gate_up(x)))
        is_last = number + 1 == len(self.layers)
        norm = self._norm if is_last else self.layers[number + 1].before_attention
        x = kernels.add_rms_norm(x, residual, norm.weight, norm.eps)
        return x if is_last else self._queries(number + 1, x, places, caches)

    def room_for_queries(self, tokens: int) -> Tensor:
        """[T, heads, dim]"""
        return self.table.new_empty(tokens, self.heads, 2 * self.table.shape[2])

    def _queries(
        self, number: int, x: Tensor, places: "Places", caches: Sequence[KeyValue]
    ) -> Tensor:
        """Of one layer, [T, heads, dim]. Its keys and values go to their places in the cache."""
        layer = self.layers[number]
        query = places.query
        if query is None:
            query = self.room_for_queries(len(x))
        q_norm, k_norm = layer.q_norm, layer.k_norm
        self._kernels.rope_and_write(
            layer.qkv(x),
            self.table,
            places.positions,
            places.slots,
            *caches[number],
            query,
            q_norm=q_norm.weight if q_norm else None,
            k_norm=k_norm.weight if k_norm else None,
            eps=q_norm.eps if q_norm else 0.0,
        )
        return query

    def logits(self, hidden: Tensor) -> Tensor:
        """[places, H] -> [places, vocabulary]"""
        return self.head(hidden)


def _layer(module: Any) -> FusedLayer:
    attention, mlp = module.self_attn, module.mlp
    has_norms = hasattr(attention, "q_norm")
    return FusedLayer(
        qkv=_projection([attention.q_proj, attention.k_proj, attention.v_proj]),
        o=_projection([attention.o_proj]),
        gate_up=_projection([mlp.gate_proj, mlp.up_proj]),
        down=_projection([mlp.down_proj]),
        before_attention=Norm.of(module.input_layernorm),
        before_mlp=Norm.of(module.post_attention_layernorm),
        q_norm=Norm.of(attention.q_norm) if has_norms else None,
        k_norm=Norm.of(attention.k_norm) if has_norms else None,
    )


def _projection(linears: Sequence[nn.Linear]) -> Projection:
    """One product for layers that are fed the same."""
    return whole_of(linears) or PlainProjection(*merge(linears))


def _are_one(linears: Sequence[object]) -> bool:
    return whole_of(linears) is not None or can_merge(linears)


def _table(rotary: Any, longest: int, like: Tensor) -> Tensor:
    """What the model multiplies queries and keys with at every position below `longest`, rounded as it rounds."""
    table: Tensor | None = None
    for first in range(0, longest, _TABLE_STEP):
        last = min(first + _TABLE_STEP, longest)
        places = torch.arange(first, last, device=like.device)[None]
        cos, sin = (each[0] for each in rotary(like, places))
        half = cos.shape[-1] // 2
        if table is None:
            table = torch.empty(longest, 2, half, dtype=like.dtype, device=like.device)
        table[first:last, 0] = cos[:, :half]
        table[first:last, 1] = sin[:, :half]
    assert table is not None
    return table


def _is_known(model: Any) -> bool:
    kind = type(model)
    if kind.__name__ not in FAMILIES or not kind.__module__.startswith("transformers."):
        return False
    base, config = model.model, model.config
    dim = base.layers[0].self_attn.head_dim
    return (
        base.rotary_emb.rope_type in _ROPE_TYPES
        and _turns_halves(base.rotary_emb, dim, base.embed_tokens.weight)
        and type(base.embed_tokens) is nn.Embedding
        and can_merge([model.lm_head])
        and model.lm_head.bias is None
        and model.lm_head.weight.dtype is base.embed_tokens.weight.dtype is model.dtype
        and len(base.layers) == config.num_hidden_layers
        and all(_is_known_layer(one, dim, model.dtype) for one in base.layers)
        and base.norm.weight.dtype is model.dtype
    )


def _turns_halves(rotary: Any, dim: int, like: Tensor) -> bool:
    """It gives an angle for each pair of numbers i and i + dim / 2 of a head."""
    cos, sin = rotary(like, torch.arange(4, device=like.device)[None])
    return all(
        each.shape[-1] == dim and each[..., : dim // 2].equal(each[..., dim // 2 :])
        for each in (cos, sin)
    )


def _is_known_layer(module: Any, dim: int, dtype: torch.dtype) -> bool:
    attention, mlp = module.self_attn, module.mlp
    parts = dict(attention.named_children()).keys()
    probe = torch.linspace(-6, 6, 32, device=module.input_layernorm.weight.device)
    return (
        dict(module.named_children()).keys() == _LAYER_PARTS
        and dict(mlp.named_children()).keys() == _MLP_PARTS
        and parts in (_ATTENTION_PARTS, _ATTENTION_PARTS | _HEAD_NORMS)
        and attention.head_dim == dim
        and abs(attention.scaling - dim**-0.5) < 1e-9
        and mlp.act_fn(probe).equal(F.silu(probe))
        and _are_one([attention.q_proj, attention.k_proj, attention.v_proj])
        and _are_one([mlp.gate_proj, mlp.up_proj])
        and _are_one([attention.o_proj])
        and _are_one([mlp.down_proj])
        and all(one.dtype is dtype for one in module.parameters())
    )
