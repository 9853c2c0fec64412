"""transformers on the same model and card: `python -m tests.gpu.peer SHAPE DEVICE FILE`.

A process of its own, which can be ended at any time: each case is written to FILE, one JSON object a line, when it is
there. Two ways of theirs: continuous batching, and `generate` over one static batch; both greedy.
"""

import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.gpu.models import SHAPES, random_transformers
from tests.gpu.timing import wait

PAGES = {"tiny": 16, "": 256}
"""Tokens of a page of their cache. Pages that prompts have in common are computed once."""


@dataclass(frozen=True, slots=True)
class PeerCase:
    """`batch` prompts of `context` tokens, and so many new ones each while all of them decode."""

    batch: int
    context: int
    new_tokens: int

    @property
    def title(self) -> str:
        return f"{self.batch} x {self.context}"


CASES = {
    "tiny": (PeerCase(1, 40, 8), PeerCase(4, 40, 8), PeerCase(2, 150, 8)),
    "": (PeerCase(1, 1024, 64), PeerCase(32, 1024, 24), PeerCase(32, 4096, 24)),
}


def run_peer(shape: str, device: str, file: Path, most_s: float) -> Iterator[dict[str, Any]]:
    """What the cases gave that were over in time."""
    command = [sys.executable, "-m", "tests.gpu.peer", shape, device, str(file)]
    file.unlink(missing_ok=True)
    try:
        subprocess.run(command, timeout=most_s, check=False)
    except subprocess.TimeoutExpired:
        sys.stdout.write(f"  transformers was stopped after {most_s:.0f} s\n")
    if file.exists():
        yield from map(json.loads, file.read_text().splitlines())


def static(model: Any, case: PeerCase, page: int) -> float:
    """Median seconds of a step of `generate` after the prompts."""
    ids = torch.tensor(_prompts(model, case, page), device=model.device)
    ticks: list[float] = []

    with torch.inference_mode():
        _greedy(model, ids, case.new_tokens, _Watch(ticks))
    wait(model.device)
    gaps = [later - began for began, later in itertools.pairwise(ticks)]
    return statistics.median(gaps[2:])


class _Watch(transformers.StoppingCriteria):  # type: ignore[misc]
    """Asked after every step whether to stop, which it never says."""

    def __init__(self, ticks: list[float]) -> None:
        self._ticks = ticks

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self._ticks.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _greedy(model: Any, ids: Any, new_tokens: int, watch: _Watch) -> None:
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        stopping_criteria=transformers.StoppingCriteriaList([watch]),
    )


def continuous(model: Any, case: PeerCase, page: int) -> float:
    """Mean seconds of a step in which all sequences decode.

    Prompts end differently and are otherwise alike, so that only the first one is computed as a whole: what a step
    reads is the same, gathered for each sequence by itself. A step has room for a prompt beside those that decode, so
    that the last one begins before the first one ends. By default they let none in while under 15 % of the pages are
    free and others decode: then the last ones begin when the first ones are over, and all never decode together.
    """
    new_tokens = case.new_tokens + 2 * case.batch
    pages = -(-(case.context + new_tokens) // page) + 1
    known = signature(transformers.ContinuousBatchingConfig).parameters
    settings: dict[str, Any] = {
        "page_size" if "page_size" in known else "block_size": page,
        "num_blocks": pages * case.batch,
        "max_batch_tokens": case.context + case.batch,
        "safety_margin": 0.0,
    }
    if "auto_switch_to_flash" in known:
        settings["auto_switch_to_flash"] = False
    greedy = transformers.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    counts: dict[str, int] = {}
    ticks: list[tuple[float, int]] = []  # while all of them decode: when, and tokens of all
    with model.continuous_batching_context_manager(
        generation_config=greedy,
        continuous_batching_config=transformers.ContinuousBatchingConfig(**settings),
        timeout=5,
    ) as manager:

        def hear() -> None:
            result = manager.get_result(timeout=1)
            if result is None:
                assert manager.is_running(), "transformers' manager ended"
            elif result.error:
                raise RuntimeError(result.error)
            else:
                counts[result.request_id] = len(result.generated_tokens)

        first, *others = _prompts(model, case, page)
        manager.add_request(first, max_new_tokens=new_tokens, streaming=True)
        while not counts:
            hear()
        for prompt in others:
            manager.add_request(prompt, max_new_tokens=new_tokens, streaming=True)
        while max(counts.values()) < new_tokens:
            hear()
            if len(counts) == case.batch:
                ticks.append((time.perf_counter(), sum(counts.values())))
    if len(ticks) < 2 * case.batch:
        raise RuntimeError(f"{len(counts)} of {case.batch} had begun when the first one was over")
    (began, before), (ended, after) = ticks[0], ticks[-1]
    return (ended - began) * case.batch / (after - before)


def _prompts(model: Any, case: PeerCase, tail: int) -> list[list[int]]:
    """The last `tail` tokens of each are its own."""
    rng = random.Random(case.context)
    vocab = range(1, model.config.vocab_size)
    alike = rng.choices(vocab, k=max(case.context - tail, 0))
    return [alike + rng.choices(vocab, k=case.context - len(alike)) for _ in range(case.batch)]


def main(name: str, device: str, file: Path) -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it makes a plan for each length, and lengths grow
    model = random_transformers(SHAPES[name], torch.device(device), "sdpa")
    page = PAGES.get(name, PAGES[""])
    for way in (continuous, static):  # the largest first: it is what the others are for
        for case in reversed(CASES.get(name, CASES[""])):
            try:
                line = {"way": way.__name__, "case": case.title, "step_s": way(model, case, page)}
            except Exception as error:  # noqa: BLE001 - one of their ways must not end the others
                line = {"way": way.__name__, "case": case.title, "error": repr(error)[:300]}
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
