"""Checkpoints that the torch engine's tests share; made once, and only when asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the seeded checkpoint of a family in `checkpoints`."""
    import torch
    from tests.unit.engines.checkpoints import save_checkpoint

    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = save_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return get


@pytest.fixture
def load(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """A fresh torch runner of a family."""
    from llmhost.config.schema.engines import TorchOptions
    from llmhost.engines.torch.load import load_runner

    def get(family: str = "llama", *, block_tokens: int = 16, **options: Any) -> Any:
        folder = checkpoint(family)
        return load_runner(folder, block_tokens=block_tokens, options=TorchOptions(**options))

    return get
