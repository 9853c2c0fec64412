"""CPU time of sampling alone per step, by what is asked for: `python -m tests.bench.bench_sampler`.

Logits are made up, spread as wide as a language model's. Texts have 2,000 tokens, half of them the prompt, and grow by
one token a step.
"""

import sys
import time
from random import Random

import torch

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch.sampler import Sampler

LENGTH = 2000
ROUNDS = 15
ASKED = {
    "greedy": Sampling(temperature=0.0),
    "greedy, repetition_penalty": Sampling(temperature=0.0, repetition_penalty=1.1),
    "greedy, logit_bias": Sampling(temperature=0.0, logit_bias=((3, 1.0),)),
    "greedy, logprobs 5": Sampling(temperature=0.0, logprobs=5),
    "temperature 1": Sampling(),
    "temperature 0.2": Sampling(temperature=0.2),
    "top_p 0.95": Sampling(top_p=0.95),
    "top_k 50, top_p 0.95": Sampling(top_k=50, top_p=0.95),
    "min_p 0.05": Sampling(min_p=0.05),
}


def sampling_ms(batch: int, vocabulary: int, asked: Sampling) -> float:
    """Thread CPU milliseconds of one step, the least of several."""
    random = Random(1)
    logits = 4 * torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(1))
    texts = [[int(vocabulary * random.random() ** 3) for _ in range(LENGTH)] for _ in range(batch)]
    rows = [
        Row(i, text[-1:], LENGTH - 1, (0,), asked, i, True, prompt_tokens=LENGTH // 2, known=text)
        for i, text in enumerate(texts)
    ]
    sampler, taken = Sampler(), []
    for step in range(ROUNDS):
        began = time.thread_time()
        sampler.sample(logits, rows)
        taken.append(time.thread_time() - began)
        rows = [row._replace(start=row.start + 1) for row in rows]
        for text in texts:
            text.append(step)
    return 1000 * min(taken)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for batch, vocabulary in ((64, 2048), (64, 32_000), (16, 152_000)):
        sys.stdout.write(f"{batch} rows, vocabulary {vocabulary:,}\n")
        for name, asked in ASKED.items():
            sys.stdout.write(f"  {name:28} {sampling_ms(batch, vocabulary, asked):7.2f} ms\n")
