"""The seam to transformers: an attention function under our own name.

transformers calls it in every layer with queries, keys and values after their rotary embedding. What belongs to the
step (where keys go, which rows there are) comes from a context variable and not as arguments, so that it reaches
the layers of any architecture, and two runners in two threads don't meet. transformers builds no masks for a name
that its mask registry doesn't have.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KeyValue, PagedKv

NAME = "llmhost_paged"
"""Value of `attn_implementation` that leads here."""


class Attention(Protocol):
    """What attends in one step: `StepAttention`, or kernels in its place."""

    def attend(self, query: Tensor, fresh: KeyValue, cache: KeyValue, scores: Scores) -> Tensor:
        """As `StepAttention.attend`."""
        ...


@dataclass(slots=True)
class ForwardPass:
    """One forward pass: what attention must know beside its arguments."""

    write: Callable[[int, KeyValue], None]
    """Puts a layer's fresh keys and values where they belong."""
    kv: PagedKv
    attention: Attention
    windows: Sequence[int | None]
    """For each layer how many last positions it sees; None is all of them."""


_current: ContextVar[ForwardPass] = ContextVar("llmhost_forward_pass")


@contextmanager
def forward_pass(state: ForwardPass) -> Iterator[None]:
    """Attention under our name uses `state` in this thread until the block ends."""
    token = _current.set(state)
    try:
        yield
    finally:
        _current.reset(token)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Write this layer's `key` and `value` [1, kv_heads, T, head_dim] and attend with `query` [1, heads, T, head_dim].

    Returns [1, T, heads, head_dim]. Of the other arguments that transformers hands to attention, `scaling`,
    `softcap` and `s_aux` are honoured. Windows and whether there is anything else to honour were found out when the
    model was loaded (`probe`).
    """
    state = _current.get()
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = state.windows[layer]
    fresh = KeyValue(key, value)
    state.write(layer, fresh)
    scores = Scores(kwargs.get("scaling"), window, kwargs.get("softcap"), kwargs.get("s_aux"))
    kv = state.kv
    return state.attention.attend(query, fresh, kv.layers[layer], scores), None


AttentionInterface.register(NAME, paged_attention)
