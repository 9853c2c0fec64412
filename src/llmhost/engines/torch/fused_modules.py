"""Norms and gated MLPs of any architecture by our kernels, module by module.

For models that `fused` has no decoder for. Names only say where to look: a module is replaced when ours gives the same
numbers on random input, with its own weights and on its own device, and stays as it was otherwise.
"""

import inspect
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmhost.engines.torch.merged import can_merge, merge

_MLP_PARTS = {"act_fn", "down_proj", "gate_proj", "up_proj"}
_SIZES = (1e-3, 1.0, 100.0)
"""Of the numbers that a norm is tried on; with small ones it shows where and how large its epsilon is."""
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 1.5e-2}
"""Relative difference: some roundings in other places."""


class _FusedNorm(nn.Module):
    """A module's RMSNorm in one kernel; its own code where numbers and weights differ in type."""

    weight: Tensor
    fused_eps: float
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is not self.weight.dtype:
            plain: Tensor = super().forward(x)
            return plain
        flat = x.reshape(-1, x.shape[-1])
        return self.rms_norm(flat, self.weight, self.fused_eps).view(x.shape)


class _FusedMlp(nn.Module):
    """A module's gated MLP with one product for gate and up; its own code while anybody listens to those layers."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    gate_up: tuple[Tensor, Tensor | None]
    silu_mul: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if _has_hooks(self.gate_proj) or _has_hooks(self.up_proj):
            plain: Tensor = super().forward(x)
            return plain
        both = F.linear(x, *self.gate_up)
        gated = self.silu_mul(both.reshape(-1, both.shape[-1]))
        out: Tensor = self.down_proj(gated.view(*x.shape[:-1], gated.shape[-1]))
        return out


def fuse_modules(model: nn.Module) -> list[str]:
    """Replace what can be replaced in `model`; returns how many modules of which classes, for the log."""
    # Here, because Triton need not be where no model is fused.
    from llmhost.engines.torch.kernels import layers as kernels

    fused: Counter[str] = Counter()
    with torch.inference_mode(mode=False), torch.no_grad():
        modules: list[Any] = list(model.modules())
        for module in modules:
            name = type(module).__name__
            if _is_norm(module):
                fused[name] += _became(
                    module,
                    _FusedNorm,
                    fused_eps=_eps(module),
                    rms_norm=kernels.rms_norm,
                )
            elif _is_gated_mlp(module):
                fused[name] += _became(
                    module,
                    _FusedMlp,
                    gate_up=merge([module.gate_proj, module.up_proj]),
                    silu_mul=kernels.silu_mul,
                )
    return [f"{count} {name}" for name, count in sorted(fused.items()) if count]


def _became(module: Any, ours: Any, **given: Any) -> bool:
    """Have `module` compute as `ours` does, or leave it as it was where the numbers are others."""
    plain: Any = type(module)
    weight: Tensor = next(module.parameters())
    rng = torch.Generator(weight.device).manual_seed(0)
    shape = (1, 3, weight.shape[-1])
    random = torch.randn(shape, generator=rng, device=weight.device).to(weight.dtype)
    tried = [random * size for size in (_SIZES if ours is _FusedNorm else (1.0,))]
    expected = [module(x) for x in tried]
    module.__class__ = _with(ours, plain)
    module.__dict__.update(given)
    is_equal = all(_agree(module(x), out) for x, out in zip(tried, expected, strict=True))
    if not is_equal:
        module.__class__ = plain
        for name in given:
            del module.__dict__[name]
    return is_equal


@cache
def _with(ours: Any, plain: Any) -> type[nn.Module]:
    """Still a `plain`, for whoever asks."""
    return type(f"Fused{plain.__name__}", (ours, plain), {})


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype is not theirs.dtype:
        return False
    off = (ours.double() - theirs.double()).norm()
    # Written so that NaN is refused too.
    return bool(off <= _TOLERANCE.get(ours.dtype, 0.0) * theirs.double().norm())


def _is_norm(module: Any) -> bool:
    weights = dict(module.named_parameters())
    return (
        "RMSNorm" in type(module).__name__
        and not isinstance(module, _FusedNorm)
        and weights.keys() == {"weight"}
        and weights["weight"].dim() == 1
        and not list(module.buffers())
        and isinstance(_eps(module), float)
        and _takes_one_tensor(module)
    )


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_gated_mlp(module: Any) -> bool:
    if (
        dict(module.named_children()).keys() != _MLP_PARTS
        or isinstance(module, _FusedMlp)
        or not can_merge([module.gate_proj, module.up_proj])
        or not can_merge([module.down_proj])
        or not _takes_one_tensor(module)
    ):
        return False
    probe = torch.linspace(-6, 6, 32, device=module.gate_proj.weight.device)
    return torch.equal(module.act_fn(probe), F.silu(probe))


def _takes_one_tensor(module: nn.Module) -> bool:
    """With more, as a norm's gate, it may compute something else than it does on one."""
    return len(inspect.signature(module.forward).parameters) == 1


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
