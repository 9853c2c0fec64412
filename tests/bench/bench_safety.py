"""What the rules cost: microseconds for a kB of ordinary text with all of them on.

    python tests/bench/bench_safety.py

The bar is 50 us per kB (1,000 characters), in and out.
"""

import sys
import time

from llmhost.config.schema.safety import SafetySettings
from llmhost.safety.pack.pack import CATEGORIES, Pack
from llmhost.safety.rules import Rules
from llmhost.safety.verdict import Direction

BAR_US = 50.0
PARAGRAPH = """\
When the ferry left the harbour in the early morning, the fog had not yet lifted, and only 3 of the 12 islands could be
seen. She had asked him to show her the letters before the meeting on Thursday; he said that he would, and then forgot.
"It is a system," he wrote later, "in which everybody has a part and nobody knows the rules." The price of the tickets
rose from 14.50 to 16 in two years, about 10%, which is more than wages did. Two of the children, who were used to the
sea, slept; their grandmother read the newspaper from 1998 that had been wrapped around the glasses.

"""


def cost_us(rules: Rules, text: str) -> float:
    """For a kB, at its best of many: others use the machine, too."""
    best = min(_once(rules, text) for _ in range(200))
    return best * 1e6 / (len(text) / 1000)


def _once(rules: Rules, text: str) -> float:
    started = time.thread_time()
    rules.judge(text)
    return time.thread_time() - started


def main() -> None:
    words = SafetySettings(blocked_words=tuple(f"word{number}" for number in range(1000)))
    for direction in Direction:
        rules = Rules(words, (), Pack(CATEGORIES, direction))
        for size in (1_000, 4_000, 32_000):
            text = (PARAGRAPH * (size // len(PARAGRAPH) + 1))[:size]
            found = cost_us(rules, text)
            verdict = "ok" if found < BAR_US else "OVER"
            line = f"{direction:6} {size:6} characters  {found:6.1f} us per kB  {verdict}\n"
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
