"""GGUF files in fewer bits, by llama.cpp's own quantiser."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.library import listening, llama

QUANTISED = {
    "q8_0": 7,
    "q6_k": 18,
    "q5_k_m": 17,
    "q5_k_s": 16,
    "q5_1": 9,
    "q5_0": 8,
    "q4_k_m": 15,
    "q4_k_s": 14,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_xs": 30,
    "iq4_nl": 25,
    "q3_k_l": 13,
    "q3_k_m": 12,
    "q3_k_s": 11,
    "q2_k": 10,
}
"""Types by llama.cpp's numbers for them, the most bits first. Those that need a sample of text are not here."""

KEPT_LINES = 20
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def quantise(
    source: Path, target: Path, kind: str, report: Callable[[str, int, int], None]
) -> None:
    """Write `source` to `target` in another type. Blocks, on all cores. Raises ModelUnavailable."""
    library = llama()
    params = library.llama_model_quantize_default_params()
    params.ftype = QUANTISED[kind]
    said: list[str] = []

    def hear(line: str) -> None:
        if (place := _TENSOR.match(line)) is not None:
            report("quantising", int(place[1]), int(place[2]))
        elif line.strip():
            said.append(line.strip())
            del said[:-KEPT_LINES]

    with listening(hear):
        code = library.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(params)
        )
    if code != 0:
        why = next((line for line in reversed(said) if "fail" in line or "error" in line), "")
        raise ModelUnavailable(
            f"llama.cpp could not write {target.name} as {kind}{f' ({why})' if why else ''}."
            " Check that the disk has room, or choose another type."
        )
