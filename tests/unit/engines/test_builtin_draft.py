"""The built-in draft model: it has the tiny model's tokenizer, a fraction of its size, and mostly its words."""

import json
from pathlib import Path

import pytest

from llmhost.engines.builtin import corpus

BUILTIN = Path(corpus.__file__).parent
TINY, DRAFT = BUILTIN / "tiny", BUILTIN / "tiny-draft"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_it_has_the_tiny_models_own_tokenizer_and_template(name: str):
    assert (DRAFT / name).read_bytes() == (TINY / name).read_bytes()


def test_it_is_small_and_ends_where_the_tiny_model_ends():
    assert (DRAFT / "model.safetensors").stat().st_size < 1.5 * 2**20
    tiny, draft = (json.loads((folder / "config.json").read_text()) for folder in (TINY, DRAFT))
    assert draft["num_hidden_layers"] == 1
    for key in ("vocab_size", "eos_token_id", "max_position_embeddings"):
        assert draft[key] == tiny[key]


def test_it_guesses_most_tokens_of_the_known_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmhost.engines.builtin.train_draft import guessed_share

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DRAFT)
    model = AutoModelForCausalLM.from_pretrained(DRAFT, dtype=torch.float32)
    assert guessed_share(model, tokenizer, every=20) > 0.97
