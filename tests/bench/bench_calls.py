"""What tools that a model may call cost an answer that has no calls: CPU per token, beside the same answer without.

    python tests/bench/bench_calls.py

No model runs: tokens go through the watch, the grammar's state and the frames of a stream, as they do in a node.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tests.unit.text.marked import TEMPLATES, tokenizer_of

from llmhost.api.frames import Frames
from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.reading import Reading
from llmhost.text.calls.families import BY_NAME
from llmhost.text.grammar_calls import HELD
from llmhost.text.tokenizer import FileTokenizer

TOKENS = 20_000
ROUNDS = 7


def microseconds(act: Callable[[], None]) -> float:
    """Of CPU for each token, the median of some rounds."""
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        act()
        found.append((time.thread_time() - began) * 1e6 / TOKENS)
    return median(found)


def measure(name: str, tokenizer: FileTokenizer) -> str:
    text = ("The < quick [brown] fox " * TOKENS)[:TOKENS]
    ids = tokenizer.encode(text, add_special_tokens=False)[:TOKENS]
    reading = Reading(BY_NAME[name], tokenizer.marks.thoughts, False, {})
    asks = GenerationRequest(request_id="req_1", kind=Kind.CHAT, model="m", may_call=True)
    tools = [{"name": "f", "parameters": {"type": "object"}, "strict": False}]
    content = {"format": name, "many": True, "tools": tools}
    spec = GrammarSpec("auto_calls", json.dumps(content)) if name in HELD else None

    def say(shown: tuple[str, ...]) -> None:
        watch = tokenizer.watch((), shown)
        for token in ids:
            watch.push(token)

    def hold() -> None:
        state = None if spec is None else tokenizer.grammar(spec, ())
        for token in ids:
            if state is not None and state.is_free:
                state.accept(token)

    def tell(how: Reading | None) -> None:
        frames = Frames(asks, 1, include_usage=False, reading=how)
        for char in text:
            frames.events([Delta(0, char, (7,))])

    watch, shown = microseconds(lambda: say(())), microseconds(lambda: say(reading.shown))
    event, read = microseconds(lambda: tell(None)), microseconds(lambda: tell(reading))
    held = microseconds(hold)
    return (
        f"{name}: watch {watch:.2f}, {shown:.2f}; state {held:.2f}; event {event:.2f}, {read:.2f}"
    )


def main() -> None:
    sys.stdout.write("us of CPU a token, each without tools and with them\n")
    for name in TEMPLATES:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = tokenizer_of(name, Path(folder))
        sys.stdout.write(measure(name, tokenizer) + "\n")


if __name__ == "__main__":
    main()
