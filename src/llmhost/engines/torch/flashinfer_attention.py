"""FlashInfer over block tables, where it is installed (Ye et al., 2025; github.com/flashinfer-ai/flashinfer).

It plans a step on the host, once for each kind of layer, from numbers that are known there, and copies the plan to the
device from page-locked memory of its own. Steps are launched ahead of the device, so the memory of a plan that may not
have been copied yet must not be written again: wrappers take turns, and each waits for its own last copy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmhost.engines.attention_libraries import FLASHINFER
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.layout import runs
from llmhost.engines.torch.prefill import Form, Kind, PrefillRows, scaling_of

DIMS = (64, 128, 256)
"""Sizes of heads that it has kernels for on all GPUs."""
WORKSPACE_BYTES = 128 << 20
"""For parts of split rows, as its documentation advises."""
WORKSPACE_ON_HOPPER_BYTES = 1 << 20
"""There it splits no rows."""
TURNS = 2
"""Plans of one kind that may be on their way to the device."""


class Numbers(NamedTuple):
    """What a plan is made of. All but `blocks` are on the host."""

    offsets: Tensor
    block_offsets: Tensor
    """[R + 1]: where the blocks of each row begin in `blocks`."""
    blocks: Tensor
    last_tokens: Tensor
    """[R]: how many places of its last block a row has."""
    ends: Tensor
    """[R]: the positions of each row. It would count them by itself, and wait for the copy of them to the device."""


@dataclass(slots=True)
class _Turn:
    wrapper: Any
    copied: Any = None
    """An event behind the copy of its last plan; None before the first, and where there is no GPU."""


@dataclass(slots=True)
class _Turns:
    turns: Sequence[_Turn]
    used: int = 0

    def next(self) -> _Turn:
        self.used += 1
        return self.turns[self.used % len(self.turns)]


class FlashInfer:
    """For one loaded model. Raises what importing the library raises."""

    name = FLASHINFER.option

    def __init__(
        self,
        form: Form,
        device: torch.device,
        capability: tuple[int, int] | None,
        event: Callable[[], Any] | None = None,
    ) -> None:
        """`event` makes what is recorded behind a copy and can be waited for; by default those of a GPU."""
        self._form = form
        self._event = event or (torch.cuda.Event if device.type == "cuda" else None)
        self._device = device
        self._library: Any = import_module(FLASHINFER.module)
        is_hopper = capability is not None and capability[0] == 9
        self._backend = "fa3" if is_hopper else "fa2"
        size = WORKSPACE_ON_HOPPER_BYTES if is_hopper else WORKSPACE_BYTES
        self._room = torch.empty(size, dtype=torch.uint8, device=device)
        self._turns: dict[tuple[int | None, float | None, float], _Turns] = {}

    def refusal(self, kind: Kind) -> str | None:
        form = self._form
        if form.dtype not in (torch.bfloat16, torch.float16):
            return "it computes in bfloat16 and float16"
        if form.stored is not form.dtype:
            return "it needs a KV cache of the computation type"
        if form.dim not in DIMS:
            return f"it has no heads of {form.dim} numbers"
        if kind.has_sinks:
            return "it has no attention sinks"  # it takes them, and does nothing with them here
        return None

    def is_built(self, kind: Kind) -> bool:
        form = self._form
        kernels = self._kernels()(
            self._backend,
            form.dtype,
            form.stored,
            form.dtype,
            torch.int32,
            form.dim,
            form.dim,
            0,  # positions are in the keys already
            kind.window is not None,
            kind.softcap is not None,
            False,
        )
        return bool(kernels.is_compiled)

    def _kernels(self) -> Callable[..., Any]:
        """Describes kernels of a form. Since 0.7 those for most GPUs are compiled in parts, and this is the first."""
        if self._backend == "fa2":
            parts = getattr(self._library.prefill, "_gen_batch_prefill_primary_module", None)
            if parts is not None:
                return parts  # type: ignore[no-any-return]
        return self._library.jit.gen_batch_prefill_module  # type: ignore[no-any-return]

    def attend(
        self, rows: PrefillRows, query: Tensor, cache: KeyValue, scores: Scores, out: Tensor
    ) -> None:
        kind = (scores.window, scores.softcap, scaling_of(scores, query))
        planned = rows.once((self.name, kind), lambda: self._planned(rows, *kind))
        planned.run(query, tuple(cache), out=out, enable_pdl=False)

    def _planned(
        self, rows: PrefillRows, window: int | None, softcap: float | None, scaling: float
    ) -> Any:
        """A wrapper that knows the step."""
        numbers: Numbers = rows.once(self.name, lambda: self._numbers(rows))
        kind = (window, softcap, scaling)
        if kind not in self._turns:
            self._turns[kind] = _Turns([_Turn(self._wrapper()) for _ in range(TURNS)])
        turn, form = self._turns[kind].next(), self._form
        if turn.copied is not None:
            turn.copied.synchronize()
        turn.wrapper.plan(
            numbers.offsets,
            numbers.block_offsets,
            numbers.blocks,
            numbers.last_tokens,
            form.heads,
            form.kv_heads,
            form.dim,
            form.block_tokens,
            causal=True,
            sm_scale=scaling,
            window_left=-1 if window is None else window - 1,
            logits_soft_cap=softcap,
            q_data_type=form.dtype,
            kv_data_type=form.stored,
            seq_lens=numbers.ends,
        )
        if self._event is not None:
            turn.copied = self._event()
            turn.copied.record()
        return turn.wrapper

    def _wrapper(self) -> Any:
        with torch.inference_mode(False):  # what is made within can't be changed outside
            return self._library.BatchPrefillWithPagedKVCacheWrapper(
                self._room, "NHD", backend=self._backend
            )

    def _numbers(self, rows: PrefillRows) -> Numbers:
        size, width = self._form.block_tokens, rows.block_tables.shape[1]
        ends = np.array(rows.ends)
        used = -(-ends // size)
        places = runs(np.arange(len(used)) * width, used)
        return Numbers(
            self._on_host(rows.offsets),
            self._on_host(np.concatenate(([0], np.cumsum(used)))),
            rows.block_tables.flatten().index_select(0, self._there(places)).int(),
            self._on_host(ends - (used - 1) * size),
            self._on_host(ends),
        )

    def _on_host(self, numbers: Any) -> Tensor:
        """int32, page-locked where a GPU is to copy it."""
        return torch.tensor(
            np.asarray(numbers), dtype=torch.int32, pin_memory=self._device.type == "cuda"
        )

    def _there(self, places: Any) -> Tensor:
        tensor = torch.from_numpy(places)
        if self._device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
