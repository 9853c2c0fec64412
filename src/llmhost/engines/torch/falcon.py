"""Falcon computes attention in its own code; here its layers are led through transformers' attention interface.

The layers' weights stay as they are. Asked for eager attention, a layer runs its own code, which is what the load
check compares with.
"""

from types import MethodType
from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb

from llmhost.engines.torch.probe import Unservable


def lead_through_interface(model: Any) -> None:
    """Make every layer of a Falcon `model` attend as its `attn_implementation` says."""
    # What transformers would find by reading the class's source.
    type(model)._can_set_attn_implementation_cached_value = True
    for module in model.modules():
        if isinstance(module, FalconAttention):
            module.forward = MethodType(_forward, module)


def _forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    name = self.config._attn_implementation
    if name == "eager":
        return type(self).forward(self, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
    if kwargs["alibi"] is not None:
        raise Unservable(
            "it lowers the scores of distant positions (ALiBi), which paged attention does not do"
        )
    query, key, value = _split_heads(self, self.query_key_value(hidden_states))
    query, key = apply_rotary_pos_emb(query, key, *kwargs["position_embeddings"])
    attend = ALL_ATTENTION_FUNCTIONS[name]
    out, _ = attend(self, query, key, value, kwargs["attention_mask"], scaling=self.inv_norm_factor)
    return self.dense(out.flatten(2)), None


def _split_heads(self: Any, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The product of the joint projection as query [1, heads, T, dim] and, not repeated, key and value."""
    if self.new_decoder_architecture:
        # For each head of keys: its queries, the key, the value.
        groups = fused.view(*fused.shape[:2], self.num_kv_heads, -1, self.head_dim)
        parts = groups[:, :, :, :-2].flatten(2, 3), groups[:, :, :, -2], groups[:, :, :, -1]
    elif self.multi_query:
        heads = fused.view(*fused.shape[:2], -1, self.head_dim)
        parts = heads[:, :, :-2], heads[:, :, -2:-1], heads[:, :, -1:]
    else:
        heads = fused.view(*fused.shape[:2], self.num_heads, 3, self.head_dim)
        parts = heads[:, :, :, 0], heads[:, :, :, 1], heads[:, :, :, 2]
    query, key, value = (part.transpose(1, 2) for part in parts)
    return query, key, value
