"""Tokenizers of bytes with the marks of some families of models, as special tokens or plain ones."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmhost.text.calls.families import BY_NAME, THOUGHTS
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer

TEMPLATES = {
    "hermes": "<think></think><tool_call>",
    "mistral": "[TOOL_CALLS]",
    "harmony": "<|channel|><|message|>",
    "kimi_k2": "<|tool_calls_section_begin|>",
    "deepseek_v3": "<\uff5ctool▁calls▁begin\uff5c>```json",
    "deepseek_v31": "<\uff5ctool▁calls▁begin\uff5c>",
    "granite": "<|tool_call|>",
    "llama3_json": "<|python_tag|>",
    "phi4_mini": "functools",
    "qwen3_coder": "<tool_call><function=",
    "seed_oss": "<seed:tool_call>",
    "minimax": "<minimax:tool_call>",
    "glm": "<tool_call><arg_key>",
    "llama4_pythonic": "<|python_start|>",
    "lfm2": "<|tool_call_start|>",
    "olmo3": "<function_calls>",
    "pythonic": "[func_name1(params_name1",
}


def tokenizer_of(name: str, folder: Path, *, is_special: bool = True) -> FileTokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    thoughts = [mark for pair in THOUGHTS for mark in pair if mark in TEMPLATES[name]]
    marks = [mark for mark in BY_NAME[name].openers if mark not in thoughts]
    raw.add_special_tokens(["<eos>", *(marks if is_special else [])])
    raw.add_tokens([AddedToken(mark, special=False) for mark in thoughts])
    raw.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<eos>", "chat_template": TEMPLATES[name]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)
