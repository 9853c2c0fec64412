"""Having llama.cpp open a file, and which models it opens that can't be run here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.library import listening


def open_model(library: Any, path: Path, params: Any, hear: Callable[[str], None]) -> Any:
    """The model of a file; `hear` is told what llama.cpp says. Raises ModelUnavailable."""
    said: list[str] = []

    def listen(line: str) -> None:
        said.append(line)
        hear(line)

    with listening(listen):
        model = library.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        why = next((line.strip() for line in said if "error" in line), "")
        raise ModelUnavailable(
            f"llama.cpp could not load {path}. It knows no such architecture, or the file is damaged."
            + (f" It says: {why[:200]}" if why else "")
        )
    return model


def refuse_unservable(library: Any, model: Any, path: Path) -> None:
    """Models that can't begin in the middle of what was computed before, as the scheduler has them do."""
    kinds = {
        "a recurrent model": library.llama_model_is_recurrent(model),
        "a hybrid of attention and recurrence": library.llama_model_is_hybrid(model),
        "a diffusion model": library.llama_model_is_diffusion(model),
        "an encoder with a decoder": library.llama_model_has_encoder(model),
    }
    for what, is_so in kinds.items():
        if is_so:
            raise ModelUnavailable(
                f"{path} is {what}, which engine 'llama' can't run yet. Its transformers checkpoint may run with"
                " engine 'torch'."
            )
