"""Random LoRA adapters, saved by PEFT itself as its users' are."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT warns of things between it and transformers, and of what a test asks for on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_adapter(folder: Path, base: Path, *, seed: int, **config: Any) -> Path:
    """An adapter of the checkpoint in `base` whose matrices are far from the zeros that training begins with."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    with quiet_peft():
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    with quiet_peft():
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def peft_answers(
    base: Path, adapter: Path, prompts: list[list[int]], new_tokens: int
) -> tuple[list[list[int]], list[list[float]]]:
    """What PEFT generates, and the gaps between its two best logits."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager"
    )
    with quiet_peft():
        adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
    answers, gaps = [], []
    for prompt in prompts:
        out = adapted.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answers.append(out.sequences[0, len(prompt) :].tolist())
        best = torch.cat(out.logits).topk(2).values
        gaps.append((best[:, 0] - best[:, 1]).tolist())
    return answers, gaps
