"""What llama.cpp would allocate for a model, asked of llama.cpp: loaded without its weights, in a fraction of a second.

It tells sizes in its log and nowhere else. Buffers of intermediate results depend on the architecture, the step and the
way of attention, so that a formula for them would be wrong for every other model.
"""

import re
from pathlib import Path

from llmhost.engines.llama.context import Context, ContextShape, Room, fitted
from llmhost.engines.llama.library import listening, llama
from llmhost.engines.llama.opening import open_model
from llmhost.engines.llama.pooling import open_pooling

_BUFFER = re.compile(r"(\S+) +(compute|output|model) buffer size = +([0-9.]+) MiB")


class Allocations:
    """Bytes of llama.cpp's buffers by what they are for, heard from its log."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str, int]] = []

    def hear(self, line: str) -> None:
        for device, purpose, mib in _BUFFER.findall(line):
            self._found.append((device, purpose, round(float(mib) * 2**20)))

    def bytes_of(self, *purposes: str, on_gpu: bool) -> int:
        """On the device that the model is on: its host's buffers don't count where that is a GPU."""
        return sum(
            size
            for device, purpose, size in self._found
            if purpose in purposes and (not on_gpu or not device.startswith("CPU"))
        )


def step_bytes(
    path: Path, shape: ContextShape, room: Room, *, gpu_layers: int, pools: bool = False
) -> int:
    """Of intermediate results in the largest step, over a KV cache with that room. Raises ModelUnavailable."""
    library, found = llama(), Allocations()
    params = library.llama_model_default_params()
    params.no_alloc = True
    params.load_mode = library.LLAMA_LOAD_MODE_NONE
    params.n_gpu_layers = gpu_layers
    model = open_model(library, path, params, found.hear)
    with listening(found.hear):
        try:
            if pools:
                library.llama_free(open_pooling(library, model, shape))
            else:
                fit = fitted(library, model, shape)
                if not (fit.has_window and room.buffers):
                    Context(library, model, fit, room).close()
        finally:
            library.llama_model_free(model)
    return found.bytes_of("compute", "output", on_gpu=gpu_layers > 0)
