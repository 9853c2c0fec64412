"""Where a JSON value ends in text that comes in pieces. What it says is not looked at."""


class ValueScan:
    """One value: an object or a list with all that is in it, a text, or a number or word up to what can't be of it."""

    __slots__ = ("_depth", "_in_text", "_is_bare", "_is_escaped", "is_over")

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._is_escaped = False
        self._is_bare = False
        """A number or a word, which has no end of its own."""
        self.is_over = False

    def take(self, text: str) -> int:  # noqa: C901 - one state machine, which is read best in one piece
        """How many characters of what comes next are the value's."""
        for place, char in enumerate(text):
            if self._in_text:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._in_text = False
                    self.is_over = not self._depth
            elif self._is_bare and char in ',}] \t\r\n"':
                self.is_over = True
                return place
            elif char == '"':
                self._in_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self.is_over = self._depth <= 0
            elif not self._depth:
                self._is_bare = True
            if self.is_over:
                return place + 1
        return len(text)
