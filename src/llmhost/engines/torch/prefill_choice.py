"""Who attends to a model's rows of several tokens: a library, if one is there and proves right, else our kernel."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.attention_libraries import (
    FLASH_ATTENTION_3,
    FLASHINFER,
    LIBRARIES,
    Capability,
    Library,
    has_flashinfer_kernels,
    library_of,
    library_refusal,
)
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.flash_attention_3 import FlashAttention3
from llmhost.engines.torch.flashinfer_attention import FlashInfer
from llmhost.engines.torch.prefill import ByLibrary, Form, Kind, PrefillAttention
from llmhost.engines.torch.prefill_trial import Trial
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

AUTO, OWN = "auto", "triton"
ACCEPTABLE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""The largest error of a library that may serve, by the type of queries."""
UNBUILT = f'its kernels for this model are not compiled; attention = "{FLASHINFER.option}" has it done, in minutes'


class Unusable(Exception):
    """Why a library does not attend."""


@dataclass(frozen=True, slots=True)
class Choice:
    prefill: ByLibrary | None
    """None is our kernel alone."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Of each library that was not taken, by its option."""

    @property
    def name(self) -> str:
        return OWN if self.prefill is None else self.prefill.library.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What must be known of a loaded model, and of where it is."""

    name: str
    form: Form
    layers: Sequence[Scores]
    device: torch.device
    capability: Capability | None
    environ: Mapping[str, str]

    @property
    def kinds(self) -> Mapping[Kind, Scores]:
        """One layer of each kind."""
        return {Kind.of(scores): scores for scores in self.layers}


def choose(option: str, model: Model) -> Choice:
    """For the option `attention`. Raises ModelUnavailable when it names a library that can't be used."""
    named = library_of(option)
    why: dict[str, str] = {}
    prefill = None
    for library in LIBRARIES if option == AUTO else (named,):
        if library is None:
            break
        try:
            prefill = tried(library, model, compiles=named is not None)
            break
        except Unusable as reason:
            why[library.option] = str(reason)
    if named is not None and prefill is None:
        raise ModelUnavailable(
            f'options.attention = "{option}" can\'t be had for {model.name}: {why[option]}. Leave it at "auto", which'
            " takes what is there."
        )
    choice = Choice(prefill, why)
    _tell(choice, model)
    return choice


def imports_of(
    option: str, capability: Capability | None, environ: Mapping[str, str]
) -> list[Callable[[], object]]:
    """Has the library imported that `choose` will try first, for whoever has time before."""
    named = library_of(option)
    for library in LIBRARIES if option == AUTO else (named,):
        if library is None or library_refusal(library, capability) is not None:
            continue
        if library is not FLASHINFER or named is not None or has_flashinfer_kernels(environ):
            return [partial(import_module, library.module)]
    return []


def tried(library: Library, model: Model, *, compiles: bool) -> ByLibrary:
    """The library, once it was right in a layer of each kind that it can attend in. Raises Unusable.

    Unless it `compiles`, kinds for which its kernels are not there yet are left to our own.
    """
    if (reason := library_refusal(library, model.capability)) is not None:
        raise Unusable(reason)
    if library is FLASHINFER and not compiles and not has_flashinfer_kernels(model.environ):
        raise Unusable(UNBUILT)  # to import it takes seconds
    try:
        attention = _made(library, model)
        kinds = _taken(attention, model, compiles=compiles)
        _build(attention, kinds, model)
    except Unusable:
        raise
    except Exception as error:  # whatever a library does, there is another way
        raise Unusable(f"it fails ({_shown(error)})") from error
    return ByLibrary(attention, frozenset(kinds))


def _made(library: Library, model: Model) -> PrefillAttention:
    if library is FLASH_ATTENTION_3:
        return FlashAttention3(model.form)
    return FlashInfer(model.form, model.device, model.capability)


def _taken(attention: PrefillAttention, model: Model, *, compiles: bool) -> dict[Kind, Scores]:
    """The kinds of layers that it will attend in. Raises Unusable when it is none."""
    kinds, reasons = {}, []
    for kind, scores in model.kinds.items():
        reason = attention.refusal(kind)
        if reason is None and not compiles and not attention.is_built(kind):
            reason = UNBUILT
        if reason is None:
            kinds[kind] = scores
        else:
            reasons.append(reason)
    if not kinds:
        raise Unusable(reasons[0] if reasons else "the model has no attention")
    return kinds


def _build(attention: PrefillAttention, kinds: Mapping[Kind, Scores], model: Model) -> None:
    """Have it attend in each kind, and compile what it needs for that. Raises Unusable when it is wrong."""
    unbuilt = sum(not attention.is_built(kind) for kind in kinds)
    began_s = time.perf_counter()
    if unbuilt:
        log_event(log, "attention.compiling", model=model.name, by=attention.name, kernels=unbuilt)
    for kind, scores in kinds.items():
        with torch.inference_mode():
            error = Trial.of(model.form, scores, model.device).error_of(attention)
        if not error < ACCEPTABLE[model.form.dtype]:  # NaN is refused too
            raise Unusable(f"it is wrong by {error:.2g} in layers {_described(kind)}")
    if unbuilt:
        took_s = round(time.perf_counter() - began_s, 1)
        log_event(log, "attention.compiled", model=model.name, by=attention.name, took_s=took_s)


def _tell(choice: Choice, model: Model) -> None:
    said: dict[str, Any] = {"model": model.name, "prefill": choice.name, "decode": OWN}
    if choice.prefill is not None:
        own = sum(Kind.of(scores) not in choice.prefill.kinds for scores in model.layers)
        if own:
            said["prefill_of_other_layers"] = f"{OWN}_in_{own}"
    if choice.why:
        said["why"] = "; ".join(f"{name}: {reason}" for name, reason in choice.why.items())
    log_event(log, "attention.chosen", **said)


def _described(kind: Kind) -> str:
    parts = [f"with a window of {kind.window}" if kind.window else "without a window"]
    if kind.softcap is not None:
        parts.append(f"with a soft cap of {kind.softcap:g}")
    return " ".join(parts)


def _shown(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or repr(error)
