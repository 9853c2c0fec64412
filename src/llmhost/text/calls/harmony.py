"""The channels of gpt-oss: thoughts are `analysis`, calls are `commentary` to a function, answers are `final`.

The format is OpenAI's harmony: `<|channel|>NAME<|message|>text<|end|>` with `<|start|>assistant` between messages.
"""

from llmhost.text.calls.json_calls import JsonReader, loaded_whole
from llmhost.text.calls.pieces import Piece, Steps

CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
FUNCTIONS = "functions."


class Harmony(JsonReader):
    def read(self) -> Steps[None]:
        mark = yield from self.say_until(START, CHANNEL, MESSAGE)
        while mark is not None:
            header = ""
            while mark in (START, CHANNEL):
                told, mark = yield from self.until(START, CHANNEL, MESSAGE)
                header += f" {told}"
            if mark == MESSAGE:
                yield from self._message(header)
            mark = yield from self.say_until(START, CHANNEL, MESSAGE)

    def _message(self, header: str) -> Steps[None]:
        _, to, recipient = header.partition("to=")
        name = recipient.split()[0].split("<|")[0] if to and recipient.split() else ""
        if name.startswith(FUNCTIONS):
            yield from self._call(name.removeprefix(FUNCTIONS))
        elif "analysis" in header.split():
            yield from self.say_until(*ENDS, is_thought=True)
        else:
            yield from self.say_until(*ENDS)

    def _call(self, name: str) -> Steps[None]:
        call = yield from self.begin(name)
        if (yield from self.skip_space()) == "{":
            text = yield from self.value(call)
            is_whole = loaded_whole(text)
            _, mark = yield from self.until(*ENDS)
        else:
            text, mark = yield from self.until(*ENDS)
            yield Piece(text or "{}", call)
            is_whole = loaded_whole(text or "{}") and mark is not None
        if is_whole:
            self.end()
