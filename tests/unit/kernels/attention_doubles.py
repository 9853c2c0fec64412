"""Doubles of FlashAttention-3 and FlashInfer: their signatures, and plain torch in float64 from the same arguments.

They refuse what the libraries refuse, as far as an adapter could get it wrong. `DOUBLED_AGAINST` says which releases
they were written from; where a real library can be imported, tests hold their signatures against it.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tests.gpu_double import no_waiting
from tests.gpu_double.memory import plain
from torch import Tensor

FA3_SCHEMA = (
    "fwd(Tensor q, Tensor k, Tensor v, Tensor(k_new!)? k_new = None, Tensor(v_new!)? v_new = None,"
    " Tensor? q_v = None, Tensor(out!)? out = None, Tensor? cu_seqlens_q = None, Tensor? cu_seqlens_k = None,"
    " Tensor? cu_seqlens_k_new = None, Tensor? seqused_q = None, Tensor? seqused_k = None, int? max_seqlen_q = None,"
    " int? max_seqlen_k = None, Tensor? page_table = None, Tensor? kv_batch_idx = None, Tensor? leftpad_k = None,"
    " Tensor? rotary_cos = None, Tensor? rotary_sin = None, Tensor? seqlens_rotary = None, Tensor? q_descale = None,"
    " Tensor? k_descale = None, Tensor? v_descale = None, float? softmax_scale = None, bool is_causal = False,"
    " int window_size_left = -1, int window_size_right = -1, int attention_chunk = 0, float softcap = 0.0,"
    " bool is_rotary_interleaved = False, Tensor? scheduler_metadata = None, int num_splits = 0,"
    " bool? pack_gqa = None, int sm_margin = 0) -> (Tensor(out!), Tensor, Tensor, Tensor)"
)
"""How the library registers its operator with torch."""
DOUBLED_AGAINST = {"flash_attn_3": "3.0.0 of 2026-08", "flashinfer-python": "0.7.2.post1"}

HAS_FLASHINFER, HAS_FA3 = (
    find_spec(name) is not None for name in ("flashinfer", "flash_attn_interface")
)
"""The real ones."""

Twist = Callable[[Tensor], None]
"""Of what a library is about to give: spoils it, or raises."""


twists: dict[str, Twist] = {}
"""What the double of that option does beside what it should."""


@contextmanager
def twisting(option: str, twist: Twist) -> Iterator[None]:
    twists[option] = twist
    try:
        yield
    finally:
        del twists[option]


def _twisted(option: str, out: Tensor) -> None:
    if option in twists:
        twists[option](out)


def attend_row(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Tensor,
    *,
    scale: float,
    window_left: int,
    softcap: float,
) -> None:
    """The last queries of a row [tokens, heads, dim] over all of its keys, the mask aligned to the end."""
    tokens, _, dim = query.shape
    groups = query.double().reshape(tokens, keys.shape[1], -1, dim)
    products = torch.einsum("tkgd,pkd->kgtp", groups, keys.double()) * scale
    if softcap > 0:
        products = torch.tanh(products / softcap) * softcap
    at = torch.arange(len(keys), device=query.device)
    distance = at[len(keys) - tokens :, None] - at
    seen = distance >= 0
    if window_left >= 0:
        seen &= distance <= window_left
    weights = products.masked_fill(~seen, -math.inf).softmax(-1)
    out.copy_(torch.einsum("kgtp,pkd->tkgd", weights, values.double()).flatten(1, 2))


# ------------------------------------------------------------ FlashAttention-3


def _fa3_forward(
    q: Tensor, k: Tensor, v: Tensor,
    k_new: Any = None, v_new: Any = None, q_v: Any = None, out: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k: Any = None, cu_seqlens_k_new: Any = None,
    seqused_q: Any = None, seqused_k: Tensor | None = None,
    max_seqlen_q: int | None = None, max_seqlen_k: Any = None,
    page_table: Tensor | None = None, kv_batch_idx: Any = None, leftpad_k: Any = None,
    rotary_cos: Any = None, rotary_sin: Any = None, seqlens_rotary: Any = None,
    q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    softmax_scale: float | None = None, is_causal: bool = False,
    window_size_left: int = -1, window_size_right: int = -1,
    attention_chunk: int = 0, softcap: float = 0.0, is_rotary_interleaved: bool = False, scheduler_metadata: Any = None,
    num_splits: int = 0, pack_gqa: Any = None, sm_margin: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    unused = (
        k_new,
        v_new,
        q_v,
        cu_seqlens_k,
        cu_seqlens_k_new,
        seqused_q,
        max_seqlen_k,
        kv_batch_idx,
        leftpad_k,
    )
    assert all(one is None for one in unused), "this double has no such way"
    assert q.dtype in (torch.float16, torch.bfloat16) and k.dtype is v.dtype is q.dtype
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
    assert page_table is not None and page_table.dtype is torch.int32 and page_table.stride(-1) == 1
    assert cu_seqlens_q is not None and seqused_k is not None and max_seqlen_q is not None
    for numbers in (cu_seqlens_q, seqused_k):
        assert numbers.dtype is torch.int32 and numbers.is_contiguous()
    assert len(cu_seqlens_q) == len(seqused_k) + 1 == len(page_table) + 1
    out = torch.empty_like(q) if out is None else out
    assert out.dtype is q.dtype and out.shape == q.shape and out.stride(-1) == 1
    assert is_causal and window_size_right in (-1, 0) and attention_chunk == 0
    size, offsets, ends = k.shape[1], cu_seqlens_q.tolist(), seqused_k.tolist()
    assert max_seqlen_q >= max(last - first for first, last in pairwise(offsets))
    for row, end in enumerate(ends):
        blocks = page_table[row, : -(-end // size)].long()
        keys, values = (cache[blocks].flatten(0, 1)[:end] for cache in (k, v))
        first, last = offsets[row], offsets[row + 1]
        scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
        attend_row(
            q[first:last], keys, values, out[first:last],
            scale=scale, window_left=window_size_left, softcap=softcap,
        )  # fmt: skip
    _twisted("flash_attention_3", out)
    return out, q.new_empty(0), q.new_empty(0), q.new_empty(0)


_registered: list[Any] = []


def install_fa3(patch: pytest.MonkeyPatch) -> None:
    """The module is there to be imported, and its operator computes on the CPU."""
    if not _registered:
        is_there = hasattr(torch.ops.flash_attn_3, "fwd")
        _registered.append(torch.library.Library("flash_attn_3", "IMPL" if is_there else "DEF"))
        if not is_there:
            _registered[0].define(FA3_SCHEMA)
        _registered[0].impl("fwd", _fa3_forward, "CPU")
    _install(patch, ModuleType("flash_attn_interface"))


# ------------------------------------------------------------ FlashInfer


class LateDevice:
    """A device that does what it was told when somebody waits for it."""

    def __init__(self) -> None:
        self._told: list[Callable[[], None]] = []

    def tell(self, what: Callable[[], None]) -> None:
        self._told.append(what)

    def run(self, count: int | None = None) -> None:
        count = len(self._told) if count is None else count
        now, self._told = self._told[:count], self._told[count:]
        for what in now:
            what()

    def event(self) -> "LateEvent":
        return LateEvent(self)


class LateEvent:
    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self._is_past = False

    def record(self) -> None:
        def pass_by() -> None:
            self._is_past = True

        self._device.tell(pass_by)

    def synchronize(self) -> None:
        while not self._is_past:
            self._device.run(1)


class BatchPrefillWithPagedKVCacheWrapper:
    """Copies a plan to the device from memory that the next plan is written to, as the real one does."""

    late: LateDevice | None = None
    """None does at once what it is told."""

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        custom_mask_buf: Tensor | None = None,
        mask_indptr_buf: Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
        jit_kwargs: dict[str, Any] | None = None,
        variant_owns_mask: bool = False,
    ) -> None:
        assert float_workspace_buffer.dtype is torch.uint8 and kv_layout == "NHD"
        assert not use_cuda_graph and backend in ("fa2", "fa3") and jit_args is None
        self._device = float_workspace_buffer.device
        is_gpu = self._device.type == "cuda"
        self._page_locked: dict[str, Any] = {}
        self._memory = torch.zeros(1024, dtype=torch.int32, pin_memory=is_gpu)
        self._memory_there = torch.zeros(1024, dtype=torch.int32, device=self._device)
        self._there: dict[str, Any] = {}

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        head_dim_vo: int | None = None,
        custom_mask: Tensor | None = None,
        packed_custom_mask: Tensor | None = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: str | torch.dtype = "float16",
        kv_data_type: str | torch.dtype | None = None,
        o_data_type: str | torch.dtype | None = None,
        non_blocking: bool = True,
        prefix_len_ptr: Tensor | None = None,
        token_pos_in_items_ptr: Tensor | None = None,
        token_pos_in_items_len: int = 0,
        max_item_len_ptr: Tensor | None = None,
        seq_lens: Tensor | None = None,
        seq_lens_q: Tensor | None = None,
        block_tables: Tensor | None = None,
        max_token_per_sequence: int | None = None,
        max_sequence_kv: int | None = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
        uniform_q_len: int | None = None,
    ) -> None:
        numbers = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(one.dtype is torch.int32 and one.is_contiguous() for one in numbers)
        assert causal and custom_mask is None and num_qo_heads % num_kv_heads == 0
        assert len(qo_indptr) == len(paged_kv_indptr) == len(paged_kv_last_page_len) + 1
        assert int(paged_kv_indptr[-1]) == len(paged_kv_indices)
        assert int(paged_kv_last_page_len.min()) >= 1
        assert int(paged_kv_last_page_len.max()) <= page_size
        pages = paged_kv_indptr[1:] - paged_kv_indptr[:-1]
        assert seq_lens is not None, (
            "what it counts by itself it copies from memory that is not page-locked"
        )
        assert seq_lens.equal((pages - 1) * page_size + paged_kv_last_page_len)
        self._types = (q_data_type, kv_data_type or q_data_type)
        self._shape = (num_qo_heads, head_dim_qk)
        self._pages = (page_size, num_kv_heads, head_dim_qk)
        self._total = int(qo_indptr[-1])
        self._page_locked.update(
            offsets=qo_indptr.tolist(),
            firsts=paged_kv_indptr.tolist(),
            blocks=paged_kv_indices.long(),
            lasts=paged_kv_last_page_len.tolist(),
        )
        self._way = {
            "scale": head_dim_qk**-0.5 if sm_scale is None else sm_scale,
            "window_left": window_left,
            "softcap": logits_soft_cap or 0.0,
        }

        with no_waiting():
            for one in (*numbers, seq_lens):
                one.to(self._device, non_blocking=non_blocking)
        planned = torch.cat([qo_indptr, paged_kv_indptr, paged_kv_last_page_len])
        self._memory[: len(planned)] = planned
        self._memory_there.copy_(self._memory, non_blocking=True)

        def copy() -> None:
            self._there = dict(self._page_locked)

        self._do(copy)

    def run(
        self,
        q: Tensor,
        paged_kv_cache: Tensor | tuple[Tensor, Tensor],
        *args: Any,
        q_scale: float | Tensor | None = None,
        k_scale: float | Tensor | None = None,
        v_scale: float | Tensor | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        lse_base: str = "log2",
        lse_layout: str = "NH",
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: Tensor | None = None,
        kv_cache_sf: Any = None,
        skip_softmax_threshold_scale_factor: float | None = None,
        use_fp16_softmax: bool | None = None,
        uses_spcompress: bool | None = None,
    ) -> Tensor:
        assert isinstance(paged_kv_cache, tuple) and not args
        keys, values = paged_kv_cache
        assert (q.dtype, keys.dtype) == self._types and values.dtype is keys.dtype
        assert q.shape == (self._total, *self._shape) and keys.shape[1:] == self._pages
        assert keys.stride() == values.stride()
        out = torch.empty_like(q) if out is None else out
        assert out.shape == q.shape and out.dtype is q.dtype
        way, result = dict(self._way), out

        def compute() -> None:
            there = self._there
            for row, last in enumerate(there["lasts"]):
                blocks = there["blocks"][there["firsts"][row] : there["firsts"][row + 1]]
                end = (len(blocks) - 1) * keys.shape[1] + last
                past = (cache[blocks].flatten(0, 1)[:end] for cache in (keys, values))
                at = slice(there["offsets"][row], there["offsets"][row + 1])
                attend_row(q[at], *past, result[at], **way)
            _twisted("flashinfer", result)

        self._do(compute)
        return out

    def _do(self, what: Callable[[], None]) -> None:
        if self.late is None:
            what()
        else:
            self.late.tell(what)


def gen_batch_prefill_module(
    backend: str,
    dtype_q: torch.dtype,
    dtype_kv: torch.dtype,
    dtype_o: torch.dtype,
    dtype_idx: torch.dtype,
    head_dim_qk: int,
    head_dim_vo: int,
    pos_encoding_mode: int,
    use_sliding_window: bool,
    use_logits_soft_cap: bool,
    use_fp16_qk_reduction: bool,
) -> SimpleNamespace:
    """What would be compiled. The double's kernels are there, but for those in `unbuilt`."""
    assert dtype_idx is torch.int32 and pos_encoding_mode == 0 and not use_fp16_qk_reduction
    form = (use_sliding_window, use_logits_soft_cap)
    return SimpleNamespace(is_compiled=form not in unbuilt)


def compiled_for(backend: str, *form: Any) -> SimpleNamespace:
    """In place of what the real library compiles and loads: its real wrapper around it can be tried without a GPU."""

    def plan(
        workspace: Tensor, numbers_there: Tensor, numbers: Tensor,
        qo_indptr: Tensor, kv_indptr: Tensor, kv_lens: Tensor, total: int, rows: int,
        heads: int, kv_heads: int, page_size: int, is_graph: bool, dim: int, dim_out: int,
        causal: bool, window_left: int, *more: Any,
    ) -> list[int]:  # fmt: skip
        given = (qo_indptr, kv_indptr, kv_lens)
        assert all(one.dtype is torch.int32 and one.device.type == "cpu" for one in given)
        assert len(qo_indptr) == len(kv_indptr) == rows + 1 == len(kv_lens) + 1
        assert total == int(qo_indptr[-1]) and causal and not is_graph and dim == dim_out
        planned = torch.cat(given).view(torch.uint8)
        numbers[: len(planned)] = planned
        numbers_there.copy_(numbers, non_blocking=True)
        return kv_lens.tolist()

    def paged_run(
        workspace: Tensor, numbers: Tensor, planned: list[int], q: Tensor, keys: Tensor, values: Tensor,
        qo_indptr: Tensor, kv_indptr: Tensor, kv_indices: Tensor, last_tokens: Tensor,
        out: Tensor, lse: Any, mask_mode: int, layout: int, window_left: int, enable_pdl: bool,
        custom_mask: Any, mask_indptr: Any, alibi: Any, prefix: Any, positions: Any, items: Any,
        softcap: float, sm_scale: float, *more: Any,
    ) -> None:  # fmt: skip
        assert (mask_mode, layout, enable_pdl, custom_mask) == (1, 0, False, None)
        # A kernel reads them on the device.
        offsets, firsts, lasts = (
            plain(one) if one.is_cuda else one for one in (qo_indptr, kv_indptr, last_tokens)
        )
        for row, end in enumerate(planned):
            used = kv_indices[int(firsts[row]) : int(firsts[row + 1])].long()
            assert end == (len(used) - 1) * keys.shape[1] + int(lasts[row])
            past = (cache[used].flatten(0, 1)[:end] for cache in (keys, values))
            at = slice(int(offsets[row]), int(offsets[row + 1]))
            attend_row(
                q[at], *past, out[at],
                scale=sm_scale, window_left=window_left, softcap=softcap,
            )  # fmt: skip

    return SimpleNamespace(plan=plan, paged_run=paged_run, workspace_size=None)


unbuilt: set[tuple[bool, bool]] = set()
"""Forms, with a window and with a soft cap, whose kernels are not there."""


def install_flashinfer(patch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("flashinfer")
    module.BatchPrefillWithPagedKVCacheWrapper = BatchPrefillWithPagedKVCacheWrapper
    module.jit = SimpleNamespace(gen_batch_prefill_module=gen_batch_prefill_module)
    module.prefill = SimpleNamespace(_gen_batch_prefill_primary_module=gen_batch_prefill_module)
    _install(patch, module)


_real: list[Any] = []


def real_flashinfer(patch: pytest.MonkeyPatch) -> Any:
    """The real one in the double's place; it can be imported once only."""
    if not _real:
        patch.delitem(sys.modules, "flashinfer")
        _real.append(pytest.importorskip("flashinfer"))
    patch.setitem(sys.modules, "flashinfer", _real[0])
    return _real[0]


def _install(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    module.__spec__ = ModuleSpec(module.__name__, None)
    patch.setitem(sys.modules, module.__name__, module)


def remove(patch: pytest.MonkeyPatch) -> None:
    """Neither is there, whatever this machine has."""
    for name in ("flash_attn_interface", "flashinfer"):
        patch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
