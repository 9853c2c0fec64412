"""Options of a GPU: where they can be had, and what fewer bits of numbers save. No torch is imported."""

import importlib.util
from collections.abc import Mapping

from llmhost.config.environment import process_environment
from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.attention_libraries import library_of, library_refusal
from llmhost.engines.kernel_needs import kernels_refusal

NARROW_LAYERS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj"),
)
"""Linear layers whose weights become narrow ones."""
LEAST_CAPABILITY = (8, 9)
"""The first GPUs that compute with float8 numbers."""
LEAST_FOR_INT4 = (8, 0)
"""The first GPUs that compute with bfloat16 numbers, which 4 bits become."""
KV_BYTES: Mapping[str, int] = {"fp8": 1}
"""By `options.kv_dtype`: of a number in the KV cache."""
INT4_GROUP = 128
"""4-bit weights that share a scale."""
_SCALE_BYTES = 4


def narrow_bytes(kind: str, name: str, shape: tuple[int, ...], item: int) -> int | None:
    """Bytes of a checkpoint's tensor once its weights are `kind`, an option; None if it stays as it is loaded.

    `item` are the bytes of a number of the computation type.
    """
    layer = name.removesuffix(".weight").rpartition(".")[2]
    if kind == "auto" or layer not in NARROW_LAYERS or len(shape) != 2:
        return None
    rows, columns = shape
    if kind == "fp8":
        return rows * columns + rows * _SCALE_BYTES
    return rows * columns // 2 + rows * columns // INT4_GROUP * item


def check_options(
    options: TorchOptions, *, device: str, capability: tuple[int, int] | None, task: str
) -> None:
    """Raises ModelUnavailable where `device`, of that compute capability if it is a GPU, can't do what is asked."""
    if options.weights != "auto":
        key = f'options.weights = "{options.weights}"'
        if capability is None:
            raise ModelUnavailable(
                f'{key} needs a GPU, and this model would run on {device}. Leave it at "auto" there.'
            )
        least = LEAST_FOR_INT4 if options.weights == "int4" else LEAST_CAPABILITY
        _check_capability(key, device, capability, least)
        if importlib.util.find_spec("triton") is None:
            raise ModelUnavailable(
                f"{key} needs Triton, which is not installed: pip install triton"
            )
        if task != "generate":
            raise ModelUnavailable(
                f'{key} is for models that generate text, and this one is to {task}. Leave it at "auto".'
            )
    if options.kv_dtype != "auto" and capability is not None:
        key = f'options.kv_dtype = "{options.kv_dtype}"'
        _check_capability(key, device, capability, LEAST_CAPABILITY)
    if options.attention != "auto":
        _check_attention(options.attention, device, capability, task)


def _check_attention(
    option: str, device: str, capability: tuple[int, int] | None, task: str
) -> None:
    """What can be seen from outside; a library has to prove itself when a model is loaded."""
    key = f'options.attention = "{option}"'
    if capability is None:
        raise ModelUnavailable(
            f'{key} needs a GPU, and this model would run on {device}. Leave it at "auto" there.'
        )
    if task != "generate":
        raise ModelUnavailable(
            f'{key} is for models that generate text, and this one is to {task}. Leave it at "auto".'
        )
    if (refusal := kernels_refusal(process_environment())) is not None:
        raise ModelUnavailable(f"{key} needs our kernels beside it. {refusal}.")
    library = library_of(option)
    if library is None:
        return
    if (reason := library_refusal(library, capability)) is not None:
        raise ModelUnavailable(
            f'{key} can\'t be had on {device}: {library.shown} is {reason}. Leave it at "auto", or {library.cure}.'
        )


def _check_capability(
    key: str, device: str, capability: tuple[int, int], least: tuple[int, int]
) -> None:
    if capability < least:
        raise ModelUnavailable(
            f"{key} needs a GPU of compute capability {_shown(least)} or more, and {device} has"
            f' {_shown(capability)}. Leave it at "auto" there.'
        )


def _shown(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
