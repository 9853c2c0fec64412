"""What each layer of a loaded model asks of attention, found by one forward pass over a few tokens.

A model says what a query may see in two places: in the mask that it has built, and in arguments of the attention
call. transformers' own kernels believe one or the other. Under the name registered here masks are built and
remembered with the rule that they were built from, so that the rule can be read at any position, however long a
sequence would have to be for it to matter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import eager_mask

from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KvShape

NAME = "llmhost_probe"
"""Value of `attn_implementation` that leads here."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of batch place, head, query position and key position: whether the key is seen."""

SCORED = ("scaling", "sliding_window", "softcap", "s_aux")
"""Arguments of an attention call that say how keys are scored, in the order of `Scores`."""
HONOURED = frozenset(SCORED)
NEUTRAL = frozenset(
    {
        "cache_position", "dropout", "is_causal", "layer_idx", "output_attentions", "output_hidden_states",
        "output_router_logits", "position_embeddings", "position_ids", "return_dict", "target_dtype", "training",
        "use_cache",
    }
)  # fmt: skip
"""Arguments of an attention call that change nothing here: what they say has been done, or is in the mask."""


class Unservable(Exception):
    """Why the torch engine can't attend as a model asks."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attention call, as far as it can be told from its arguments."""

    kv_heads: int
    key_dim: int
    value_dim: int
    scores: Scores
    """With the window of the arguments, which a mask overrules."""
    mask: "Mask | None"


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask as its layer got it, and the rule that it was built from, or None for one of the model's own making."""

    values: Tensor
    rule: Rule | None


@dataclass(slots=True)
class _Heard:
    calls: dict[int, list[Call]] = field(default_factory=dict)
    masks: list[Mask] = field(default_factory=list)

    def mask(self, given: Tensor | None) -> Mask | None:
        """Which of the masks that were built this one is; a view of one counts."""
        if given is None:
            return None
        known = (one for one in self.masks if one.values.data_ptr() == given.data_ptr())
        return next(known, Mask(given, None))


_current: ContextVar[_Heard] = ContextVar("llmhost_probe")


def layer_windows(
    model: Any, tokens: Sequence[int], shape: KvShape, longest: int
) -> list[int | None]:
    """How many last positions each layer sees; None is all of them. Raises as `layer_scores`."""
    return [scores.window for scores in layer_scores(model, tokens, shape, longest)]


def layer_scores(model: Any, tokens: Sequence[int], shape: KvShape, longest: int) -> list[Scores]:
    """How each layer scores keys, and which it sees.

    Raises Unservable when a layer needs something that paged attention over `shape` does not have, at any position
    below `longest`.
    """
    calls = _ask(model, tokens)
    if not calls:
        raise Unservable("it computes attention in its own code")
    for layer in range(shape.layers):
        made = len(calls.get(layer, ()))
        if made != 1:
            raise Unservable(f"layer {layer} attends {made} times in a forward pass")
    if max(calls) >= shape.layers:
        raise Unservable(f"it has a layer {max(calls)}, and its config says {shape.layers} layers")
    rules: dict[int, int | None] = {}
    found = []
    for layer in range(shape.layers):
        (call,) = calls[layer]
        _check_shape(layer, call, shape)
        if call.mask is None:
            found.append(call.scores)
            continue
        known = id(call.mask)
        if known not in rules:
            rules[known] = window_of(layer, call.mask, longest)
        found.append(call.scores._replace(window=rules[known]))
    _check_cache(model.config, [scores.window for scores in found], longest)
    return found


def _ask(model: Any, tokens: Sequence[int]) -> Mapping[int, Sequence[Call]]:
    with _as_probed(model) as heard:
        ids = torch.tensor([list(tokens)], device=model.device)
        positions = torch.arange(len(tokens), device=model.device)[None]
        model(input_ids=ids, position_ids=positions, use_cache=False)
    return heard.calls


@contextmanager
def _as_probed(model: Any) -> Iterator[_Heard]:
    heard = _Heard()
    token = _current.set(heard)
    try:
        with attending_with(model, NAME), torch.inference_mode():
            yield heard
    finally:
        _current.reset(token)


@contextmanager
def attending_with(model: Any, name: str) -> Iterator[None]:
    """Until the block ends all layers of `model` attend with the implementation of that name."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        # transformers only logs that it did not.
        raise Unservable("its attention can't be switched to another implementation")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _check_cache(config: Any, windows: Sequence[int | None], longest: int) -> None:
    """transformers' own cache for a model must hold what its layers see, and nothing beside keys and values."""
    for layer, kept in enumerate(DynamicCache(config=config).layers):
        if type(kept) is DynamicSlidingWindowLayer:
            window = kept.sliding_window if kept.sliding_window < longest else None
        elif type(kept) is DynamicLayer:
            continue
        else:
            raise Unservable(
                f"layer {layer} keeps more than keys and values ({type(kept).__name__})"
            )
        if window != windows[layer]:
            raise Unservable(
                f"layer {layer} keeps {window or 'all'} positions, and its mask lets it see"
                f" {windows[layer] or 'all'}: with its cache the model computes something else than without"
            )


def _check_shape(layer: int, call: Call, shape: KvShape) -> None:
    if call.key_dim != call.value_dim:
        raise Unservable(
            f"keys of layer {layer} have {call.key_dim} numbers and values {call.value_dim}; the cache needs"
            " equal sizes"
        )
    if (call.kv_heads, call.key_dim) != (shape.kv_heads, shape.head_dim):
        raise Unservable(
            f"layer {layer} keeps {call.kv_heads} heads of {call.key_dim} numbers for each token, and not"
            f" {shape.kv_heads} of {shape.head_dim} as its config says; layers of different sizes are not served"
        )


def window_of(layer: int, mask: Mask, longest: int) -> int | None:
    """The window that explains `mask` at every position; None when all that is past is seen."""
    if mask.rule is None:
        raise Unservable(f"layer {layer} has a mask of the model's own making")
    width = int(_seen(mask, longest - 1, longest).sum())
    for query in _places(width, longest):
        seen = _seen(mask, query, longest)
        if seen[query + 1 :].any():
            raise Unservable(f"layer {layer} sees positions after its own")
        expected = torch.zeros_like(seen)
        expected[max(query + 1 - width, 0) : query + 1] = True
        if not seen.equal(expected):
            raise Unservable(
                f"layer {layer} sees other positions than the last {width}: at position {query} it sees"
                f" {int(seen.sum())}, from {int(seen.int().argmax())} on"
            )
    return None if width == longest else width


def _places(width: int, longest: int) -> list[int]:
    """Query positions at which a rule of about `width` would show that it is none."""
    near = (
        edge + step for edge in (0, width, 2 * width, 3 * width, longest) for step in (-2, -1, 0, 1)
    )
    spread = (longest * part // 16 for part in range(16))
    powers = (2**power for power in range(longest.bit_length()))
    return sorted({place for place in (*near, *spread, *powers) if 0 <= place < longest})


def _seen(mask: Mask, query: int, longest: int) -> Tensor:
    """[longest]: the keys that the query at that position sees."""
    assert mask.rule is not None
    device = mask.values.device
    zero = torch.zeros((), dtype=torch.long, device=device)
    keys = torch.arange(longest, device=device)
    try:
        seen = mask.rule(zero, zero, zero + query, keys)
    except (IndexError, RuntimeError) as error:
        raise Unservable(f"the mask's rule does not hold for any position ({error})") from error
    return torch.as_tensor(seen, dtype=torch.bool).expand(longest)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Write down what is asked; the answer has the right shape and means nothing."""
    heard = _current.get()
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise Unservable("its attention does not say which layer it is of")
    if strange := sorted(name for name, given in kwargs.items() if _is_strange(name, given)):
        raise Unservable(
            f"layer {layer} needs {', '.join(strange)}, which paged attention does not have"
        )
    is_causal = kwargs.get("is_causal", getattr(module, "is_causal", True))
    if attention_mask is None and is_causal is False:
        raise Unservable(f"layer {layer} sees positions after its own")
    heard.calls.setdefault(layer, []).append(
        Call(
            key.shape[1],
            key.shape[-1],
            value.shape[-1],
            Scores(*(kwargs.get(name) for name in SCORED)),
            heard.mask(attention_mask),
        )
    )
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def _is_strange(name: str, given: Any) -> bool:
    return given is not None and name not in HONOURED and name not in NEUTRAL


def _build_mask(*args: Any, **kwargs: Any) -> Tensor:
    kwargs["allow_is_bidirectional_skip"] = False
    values: Tensor = eager_mask(*args, **kwargs)
    _current.get().masks.append(Mask(values, kwargs["mask_function"]))
    return values


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _build_mask)
