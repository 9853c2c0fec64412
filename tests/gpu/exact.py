"""Numbers before speed: small random models on the device against transformers in float32."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from tests.unit.engines.checkpoints import save_checkpoint
from tests.unit.engines.parity import WAYS, reference

from llmhost.config.schema.engines import TorchOptions
from llmhost.engines.torch import selfcheck
from llmhost.engines.torch.load import load_runner

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, heads of 128": ("llama", {"head_dim": 128}),
    "qwen3, heads of 64": ("qwen3", {"head_dim": 64}),
    "gemma2": ("gemma2", {}),
    "gpt_oss": ("gpt_oss", {}),
    "mistral_window": ("mistral_window", {}),
}
WAYS_TRIED = ("in_mixed_steps", "after_prefix_hits", "with_guesses")
HALF = {"bfloat16": 0.08}
"""How far logits may be from those in float32: the median of all tokens."""
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    is_right: bool
    said: str


def small_models(device: str, titles: Iterable[str]) -> Iterator[Verdict]:
    """Greedy tokens in float32 and logits in half precision, family by family."""
    for title in titles:
        family, changes = FAMILIES[title]
        with tempfile.TemporaryDirectory() as name:
            folder = save_checkpoint(Path(name), family, **changes)
            yield from _judged(f"{title}, float32", lambda: _tokens(folder, device))  # noqa: B023 - called at once
            for dtype in HALF:
                yield from _judged(f"{title}, {dtype}", lambda: _logits(folder, device, dtype))  # noqa: B023


def _judged(what: str, judge: Any) -> Iterator[Verdict]:
    try:
        is_right, said = judge()
    except Exception as error:  # noqa: BLE001 - whatever a family raises, the next ones are judged too
        is_right, said = False, repr(error)[:400]
    yield Verdict(what, is_right, said)


def _tokens(folder: Path, device: str) -> tuple[bool, str]:
    options = TorchOptions(device=device, dtype="float32")
    wrong: list[str] = []
    tokens = ties = 0
    right = reference(folder)
    runner = load_runner(folder, block_tokens=16, options=options)
    for way in WAYS_TRIED:
        score = WAYS[way](runner, right)
        tokens, ties = tokens + score.tokens, ties + score.ties
        wrong += [f"{way}: {each}" for each in score.wrong]
    runner.close()
    return not wrong, f"{tokens} tokens, {ties} near-ties, wrong: {wrong[:3]}"


def _logits(folder: Path, device: str, dtype: str) -> tuple[bool, str]:
    """Of our runner in half precision against transformers' eager attention in float32."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    vocab = model.config.vocab_size
    texts = [
        [(7919 * (place + 1) + 31 * n) % vocab for place in range(61 - 8 * n)] for n in range(2)
    ]
    with torch.inference_mode():
        theirs = [model(input_ids=torch.tensor([text])).logits[0] for text in texts]
        runner = load_runner(
            folder, block_tokens=16, options=TorchOptions(device=device, dtype=dtype)
        )
        runner.set_kv_blocks(32)
        ours = [each.cpu() for each in selfcheck._in_mixed_steps(runner, texts)]
    distance = torch.cat(
        [
            (one.float() - other).norm(dim=-1) / other.norm(dim=-1)
            for one, other in zip(ours, theirs, strict=True)
        ]
    )
    runner.close()
    middle, worst = float(distance.median()), float(distance.max())
    return middle <= HALF[dtype], f"logits off by {middle:.2g} (median), {worst:.2g} (worst)"


@contextmanager
def marked_tests() -> Iterator[Callable[[float], Verdict]]:
    """The tests that need a GPU, in some processes, since most of their time goes into compiling kernels. They run
    while the block does; what it is given waits so many seconds for them."""
    marked = [
        str(path.relative_to(ROOT))
        for folder in ("unit", "gpu")
        for path in sorted((ROOT / "tests" / folder).glob("**/test_*.py"))
        if "mark.gpu" in path.read_text()
    ]
    # Other libraries than the pinned ones may warn of things that are no error here.
    words = ["-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "--durations=6"]
    if find_spec("xdist") is not None:
        words += ["-n", str(min(8, os.cpu_count() or 1))]
    with tempfile.TemporaryFile("w+") as said:
        tests = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words, *marked],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield lambda most_s: _outcome(tests, said, most_s)
        finally:
            if tests.poll() is None:
                os.killpg(tests.pid, signal.SIGKILL)
                tests.wait()


def _outcome(tests: "subprocess.Popen[bytes]", said: IO[str], most_s: float) -> Verdict:
    try:
        status = tests.wait(most_s)
    except subprocess.TimeoutExpired:
        status = -1
    said.seek(0)
    lines = said.read().splitlines()
    told = [
        line[:300] for line in lines if re.match(r"FAILED|ERROR|E  |=+ |[\d.]+s call|\d+ ", line)
    ]
    is_right = status == 0
    kept = told[-45:] if not is_right else told[-9:]
    return Verdict("tests with a GPU", is_right, "\n    ".join(kept or lines[-5:]))
