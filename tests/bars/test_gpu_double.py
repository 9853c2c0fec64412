"""A real server whose model is on a GPU that isn't there, from the command to the answer, to sleep and to the end."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server_process import SOURCE, Node, chat_body, environment, eventually
from tests.unit.engines.checkpoints import save_checkpoint

import llmhost

pytestmark = pytest.mark.bars

ROOT = Path(__file__).parents[2]
TOKENIZER = Path(llmhost.__file__).parent / "engines" / "builtin" / "tiny"
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "vocab_size": 2048,  # the tokenizer's
}
MODELS = """
[models.there]
engine = "torch"
source = "{folder}"
max_batch_size = 2
max_tokens_per_batch = 16
[models.there.options]
device = "cuda:0"
dtype = "float32"

[models.here]
engine = "torch"
source = "{folder}"
[models.here.options]
device = "cpu"
dtype = "float32"
"""
LONGEST_START_S = 600.0
"""Loading interprets some ten thousand programs."""


class NodeWithGpu(Node):
    def spawn(self) -> "NodeWithGpu":
        words = ["serve", "--models", str(self.settings_path), "--data-dir", str(self.data_dir)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu_double", *words, "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=environment(PYTHONPATH=f"{SOURCE}:{ROOT}"),
                start_new_session=True,
            )
        return self


def test_a_server_answers_from_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", "llama", **SMALL)
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    node = NodeWithGpu(tmp_path / "node", MODELS.format(folder=folder)).spawn()
    try:
        node.wait_announced()
        eventually(node.is_ready, "the server did not become ready", LONGEST_START_S)

        def said(model: str) -> str:
            body = chat_body("hi", model=model, max_tokens=6, temperature=0)
            answer = node.http.post(f"{node.url}/v1/chat/completions", json=body, timeout=300.0)
            assert answer.status_code == 200, answer.text
            content: str = answer.json()["choices"][0]["message"]["content"]
            return content

        right = said("here")
        assert said("there") == right
        node.admin("POST", "/models/there/sleep").raise_for_status()
        assert node.state("there") == "asleep"
        assert said("there") == right
    finally:
        status = node.stop()
        node.close()
    assert status == 0, node.log()
