"""Steps ahead on a GPU: what shapes a token looks at one that only the device knows."""

from pathlib import Path

import pytest
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.steps_ahead import check_that_steps_ahead_draw_the_same

from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch.load import load_runner

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("is_held", [False, True])
def test_what_shapes_a_token_does_so_in_steps_launched_ahead(
    tmp_path: Path, *, is_held: bool
) -> None:
    folder = save_checkpoint(tmp_path, "llama")
    options = TorchOptions(device="cuda:0", dtype="float32")
    runner = load_runner(folder, block_tokens=16, options=options)
    runner.set_kv_blocks(16)
    check_that_steps_ahead_draw_the_same(runner, is_held=is_held)
    runner.close()
