"""From a checkpoint's folder to a runner that has proved itself.

transformers finds the architecture and reads the weights; nothing is downloaded. A loaded model must then agree
with transformers' own attention on a few tokens, so that an architecture which needs something that ours does not
have is refused here and not noticed by its readers.
"""

import inspect
import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as transformers_logging

from llmhost.config.environment import process_environment
from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import DoesNotFit, ModelUnavailable
from llmhost.core.units import show_bytes
from llmhost.engines.torch import attention, narrow, quantised
from llmhost.engines.torch.blank import CantBeBlank
from llmhost.engines.torch.compile_ahead import CompileAhead, launches_of
from llmhost.engines.torch.cpu_linear import pack_beside, widen_where_it_helps
from llmhost.engines.torch.expand import drop_used_up, expand
from llmhost.engines.torch.footprint import Footprint, read_footprint
from llmhost.engines.torch.int4 import Quantised
from llmhost.engines.torch.kernel_path import KernelPath, has_kernels
from llmhost.engines.torch.kv import KvShape
from llmhost.engines.torch.memory import give_back
from llmhost.engines.torch.packed import rows_at_once
from llmhost.engines.torch.runner import TorchRunner
from llmhost.engines.torch.selfcheck import check_against_eager
from llmhost.engines.torch.steady_linear import Unsteady, make_linears_steady
from llmhost.engines.torch.steady_rows import tile_for
from llmhost.engines.torch.threads import SMALL_BYTES, threads_for
from llmhost.engines.torch.weights import DIRECT_DEVICES, NotOneToOne, read_model
from llmhost.engines.torch.words import unpack
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

_LOADING_ERRORS = (
    OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError
)  # fmt: skip
"""What from_pretrained raises on a checkpoint that it doesn't like; it has no error of its own."""


def load_runner(folder: Path, *, block_tokens: int, options: TorchOptions) -> TorchRunner:
    """Load the checkpoint in `folder`; the runner has no KV blocks yet.

    Raises ModelUnavailable with the reason when it can't be served.
    """
    device = pick_device(options.device)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return _load_to(device, folder, block_tokens, options)


def _load_to(
    device: torch.device, folder: Path, block_tokens: int, options: TorchOptions
) -> TorchRunner:
    footprint = read_footprint(
        folder,
        block_tokens=block_tokens,
        dtype=options.dtype,
        on_gpu=device.type == "cuda",
        weights=options.weights,
    )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    before = allocated_bytes(device)
    ahead = _compile_ahead(folder, footprint, block_tokens, options, device)
    try:
        model = _load_model(folder, footprint, options, device)
        if options.weights != "auto":
            _narrow(model, options.weights, device, folder)
        model.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"The weights in {folder} need {show_bytes(footprint.weights_bytes)} on {device}, which is more"
            " than is free there. Unload another model, or use a smaller dtype."
        ) from error
    ahead.wait()
    shape = KvShape(
        layers=footprint.layers,
        kv_heads=footprint.kv_heads,
        head_dim=footprint.head_dim,
        block_tokens=block_tokens,
        dtype=getattr(torch, footprint.dtype),
    )
    return proved_runner(
        model,
        shape,
        vocab_size=footprint.vocab_size,
        max_sequence_length=footprint.max_sequence_length,
        folder=folder,
        before_bytes=before,
        kv_dtype=options.kv_dtype,
        attention=options.attention,
    )


def _compile_ahead(
    folder: Path,
    footprint: Footprint,
    block_tokens: int,
    options: TorchOptions,
    device: torch.device,
) -> CompileAhead:
    """Nothing where there are no kernels. Libraries that may attend are imported, too."""
    if not has_kernels(device):
        return CompileAhead(())
    from llmhost.engines.torch.prefill_choice import imports_of

    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    imports = imports_of(options.attention, capability, process_environment())
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=options.trust_remote_code
        )
        launches = launches_of(
            config,
            kv_heads=footprint.kv_heads,
            head_dim=footprint.head_dim,
            block_tokens=block_tokens,
            dtype=getattr(torch, footprint.dtype),
            device=device,
            weights=options.weights,
            kv_dtype=options.kv_dtype,
        )
    except _LOADING_ERRORS as error:  # loading will say what is wrong, if anything is
        log.debug("compile.unknown", exc_info=error)
        launches = []
    return CompileAhead([*imports, *launches], device)


def proved_runner(
    model: Any,
    shape: KvShape,
    *,
    vocab_size: int,
    max_sequence_length: int,
    folder: Path,
    before_bytes: int,
    kv_dtype: str = "auto",
    attention: str = "auto",
) -> TorchRunner:
    """A runner of `model`, whose weights are on their device, once it agrees with transformers.

    `folder` is what errors call it, `before_bytes` what was allocated on the device before its weights, `kv_dtype` and
    `attention` the options of those names: the check is made with a cache that rounds nothing, and our kernels. Raises
    ModelUnavailable.
    """
    widen_where_it_helps(model)
    is_steady = _make_steady(model, shape)
    runner = TorchRunner(
        model,
        shape,
        vocab_size=vocab_size,
        max_sequence_length=max_sequence_length,
        kernels=has_kernels(model.device),
        is_steady=is_steady,
    )
    if runner.device.type == "cuda":
        grown = allocated_bytes(runner.device) - before_bytes
        runner.facts = replace(runner.facts, measured_bytes=grown)
    with threads_for(runner.facts.weights_bytes, runner.device):
        _prove(runner, model, folder, shape)
    narrow.compile_products(model)
    if kv_dtype == "fp8":
        runner.keep_kv_as(torch.float8_e4m3fn)
    if runner.path is not None:
        _choose_attention(runner, runner.path, attention, folder)
    else:
        runner.packing = pack_beside(model)
        if runner.packing.layers:
            runner.facts = replace(runner.facts, rows_at_once=rows_at_once())
    return runner


def _choose_attention(runner: TorchRunner, path: KernelPath, option: str, folder: Path) -> None:
    """Who attends to rows of several tokens, with the room that it needs. Raises ModelUnavailable where that is named
    and can't be had."""
    from llmhost.engines.torch.prefill import Form
    from llmhost.engines.torch.prefill_choice import Model, choose

    is_gpu = runner.device.type == "cuda"
    shape = runner.kv_shape
    model = Model(
        name=folder.name,
        form=Form(
            heads=path.heads,
            kv_heads=shape.kv_heads,
            dim=shape.head_dim,
            block_tokens=shape.block_tokens,
            dtype=runner.dtype,
            stored=shape.dtype,
        ),
        layers=runner.layers_ask,
        device=runner.device,
        capability=torch.cuda.get_device_capability(runner.device) if is_gpu else None,
        environ=process_environment(),
    )
    before_bytes = allocated_bytes(runner.device)
    choice = choose(option, model)
    path.prefill = choice.prefill
    room_bytes = max(allocated_bytes(runner.device) - before_bytes, 0)
    runner.facts = replace(
        runner.facts,
        attends=choice.name,
        measured_bytes=None
        if runner.facts.measured_bytes is None
        else runner.facts.measured_bytes + room_bytes,
    )


def _make_steady(model: Any, shape: KvShape) -> bool:
    """Whether each row of the model's steps is now computed as it would be alone: small ones in float32 on the CPU,
    where this machine can do it. Otherwise nothing has changed."""
    if model.device.type != "cpu" or model.dtype is not torch.float32 or has_kernels(model.device):
        return False
    if sum(one.nbytes for one in model.parameters()) >= SMALL_BYTES:
        return False
    try:
        if tile_for(shape) is None:
            raise Unsteady("attention over this cache changes with the number of rows")
        make_linears_steady(model)
    except Unsteady as why:
        log_event(log, "steady.off", why=str(why))
        return False
    give_back()  # what was packed was there twice
    return True


def _prove(runner: TorchRunner, model: Any, folder: Path, shape: KvShape) -> None:
    """Where fused layers disagree, the model's own modules may well be right."""
    if runner.path is None or runner.path.decoder is None:
        check_against_eager(runner, model, folder, shape)
        return
    try:
        check_against_eager(runner, model, folder, shape)
    except ModelUnavailable as error:
        log_event(log, "fused.off", level=logging.WARNING, model=folder.name, why=error.message)
        runner.path.unfuse()
        check_against_eager(runner, model, folder, shape)


def allocated_bytes(device: torch.device) -> int:
    """Bytes in tensors on a GPU; 0 for the CPU, which does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def pick_device(option: str) -> torch.device:
    """The device that the option of that name means. Raises ModelUnavailable when it isn't there."""
    count = torch.cuda.device_count()
    if option == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    try:
        device = torch.device(option)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ModelUnavailable(f"options.device is {option!r}; it can be auto, cpu or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ModelUnavailable(f"options.device is {option!r} and this machine has {count} GPUs.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _load_model(
    folder: Path, footprint: Footprint, options: TorchOptions, device: torch.device
) -> Any:
    """The model with its weights, on `device` or still on the host."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    local = {"local_files_only": True, "trust_remote_code": options.trust_remote_code}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        refuse_architecture(footprint.architecture, config, options)
        is_falcon = config.model_type == "falcon"
        name = "eager" if is_falcon else attention.NAME
        model = None
        if _is_direct(config, footprint, options, device):
            model = _read_directly(folder, config, footprint, name, device)
        if model is None:
            model, known = _read_by_transformers(folder, config, footprint, name, local, device)
            if options.weights == "int4":
                narrow.remember(model, known)
    except torch.OutOfMemoryError:
        raise
    except _LOADING_ERRORS as error:
        reason = str(error).strip().split("\n")[0] or repr(error)
        raise ModelUnavailable(f"The model in {folder} could not be loaded: {reason}") from error
    if is_falcon:
        from llmhost.engines.torch.falcon import lead_through_interface

        lead_through_interface(model)
        model.set_attn_implementation(attention.NAME)
    return model


def _is_direct(
    config: Any, footprint: Footprint, options: TorchOptions, device: torch.device
) -> bool:
    """Whether to try to read the weights straight to their device."""
    if device.type not in DIRECT_DEVICES or _has_own_code(config, options):
        return False
    return options.weights == "auto" or _has_room_for_both(footprint, device)


def _has_room_for_both(footprint: Footprint, device: torch.device) -> bool:
    """The whole weights and the narrow ones fit beside each other, and an eighth of the device is left to others."""
    if device.type == "cpu":
        return True
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    whole_bytes = footprint.parameters * int(getattr(torch, footprint.dtype).itemsize)
    return whole_bytes + footprint.weights_bytes + total_bytes // 8 <= free_bytes


def _read_directly(
    folder: Path, config: Any, footprint: Footprint, name: str, device: torch.device
) -> Any:
    """The model on its device; None when its checkpoint is not the model's tensors one to one."""
    try:
        return read_model(
            folder, config, dtype=getattr(torch, footprint.dtype), attention=name, device=device
        )
    except (NotOneToOne, CantBeBlank) as why:
        log_event(log, "weights.indirect", folder=str(folder), why=str(why))
        return None


def _read_by_transformers(
    folder: Path,
    config: Any,
    footprint: Footprint,
    name: str,
    local: Mapping[str, Any],
    device: torch.device,
) -> tuple[Any, Mapping[str, Quantised]]:
    """The model on the host, and what is known of layers that have been quantised."""
    settings = config.to_dict()
    dtype = getattr(torch, footprint.dtype)
    kind: Any = transformers.AutoModelForCausalLM
    source: dict[str, Any] = {"pretrained_model_name_or_path": folder, **local}
    known: Mapping[str, Quantised] = {}
    if quantised.is_unpacked_here(settings):
        if local["trust_remote_code"] and getattr(config, "auto_map", None):
            raise ValueError("its weights are quantised, and transformers has no code for it")
        unpacked = unpack(folder, settings, dtype=dtype, device=device)
        del config.quantization_config
        kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        source = {"pretrained_model_name_or_path": None, "state_dict": unpacked.tensors}
        known = unpacked.int4
    elif not quantised.is_expanded_later(settings):
        _expand_weights(config)
    model, report = kind.from_pretrained(
        config=config,
        dtype=dtype,
        attn_implementation=name,
        use_safetensors=True,
        output_loading_info=True,
        **source,
    )
    if missing := sorted(report["missing_keys"]):
        # transformers fills these with random numbers and goes on.
        raise ModelUnavailable(
            f"The weights in {folder} lack {len(missing)} tensors that a {footprint.architecture} needs,"
            f" {missing[0]} first. The checkpoint is incomplete or belongs to another config.json."
        )
    if quantised.is_expanded_later(settings):
        return expand(model, dtype), known
    drop_used_up(model)
    return model, known


def _has_own_code(config: Any, options: TorchOptions) -> bool:
    return options.trust_remote_code and bool(getattr(config, "auto_map", None))


def _narrow(model: Any, kind: str, device: torch.device, folder: Path) -> None:
    """The matrices of `model` as narrow ones on `device`; what is left of it stays on the host."""
    if reason := narrow.refusal(model, kind):
        raise ModelUnavailable(
            f"{type(model).__name__} in {folder} can't have {kind} weights: {reason}. Leave options.weights"
            ' at "auto".'
        )
    narrow.narrow_weights(model, kind, device)


def _expand_weights(config: Any) -> None:
    """Have transformers turn quantised weights into plain ones while it reads them; by itself it may look for kernels,
    or quantise what goes into a layer too, which makes answers depend on the last bit of it."""
    if settings := getattr(config, "quantization_config", None):
        config.quantization_config = {**settings, "dequantize": True}


def refuse_architecture(name: str, config: Any, options: TorchOptions) -> None:
    """Say no before weights are read when transformers can't enter this architecture through our attention."""
    if _has_own_code(config, options):
        return  # its class is known once its code has run; the check after loading covers it
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if known is None:
        raise ModelUnavailable(
            f"transformers {transformers.__version__} has no language model for the model type"
            f" {config.model_type!r} ({name})."
        )
    if known.__name__ != "FalconForCausalLM" and not hasattr(
        sys.modules[known.__module__], "ALL_ATTENTION_FUNCTIONS"
    ):
        raise ModelUnavailable(
            f"{known.__name__} computes attention in its own code and can't be run over a paged KV cache"
            " (it does not go through transformers' attention interface)."
        )
    if "logits_to_keep" not in inspect.signature(known.forward).parameters:
        raise ModelUnavailable(f"{known.__name__} can't be asked for the logits of chosen tokens.")
