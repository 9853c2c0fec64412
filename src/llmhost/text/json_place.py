"""Where a JSON text stands that comes token by token, as far as its own bytes tell."""

from typing import NamedTuple

NUMBER_DIGITS = 20
"""As many as any 64-bit integer has, and more than a double holds."""
EXPONENT_DIGITS = 2


class JsonPlace(NamedTuple):
    in_string: bool = False
    is_escaped: bool = False
    """The last byte was a backslash that escapes the next."""
    digits: int = 0
    """Of the number that stands here, or of its exponent."""
    in_exponent: bool = False

    def after(self, text: bytes) -> "JsonPlace":
        in_string, is_escaped, digits, in_exponent = self
        for byte in text:
            if in_string:
                in_string = is_escaped or byte != 0x22
                is_escaped = not is_escaped and byte == 0x5C
            elif 0x30 <= byte <= 0x39:
                digits += 1
            elif byte in b"eE" and digits:
                digits, in_exponent = 0, True
            elif byte not in b".+-":
                in_string, digits, in_exponent = byte == 0x22, 0, False
        return JsonPlace(in_string, is_escaped, digits, in_exponent)

    @property
    def digits_left(self) -> int:
        """That a number which stands here may still have."""
        most = EXPONENT_DIGITS if self.in_exponent else NUMBER_DIGITS
        return max(most - self.digits, 0)

    @property
    def closers(self) -> tuple[bytes, ...]:
        """What brings the text nearer to its end, the best first."""
        if self.in_string:
            return () if self.is_escaped else (b'"',)
        return (b"}", b"]", b",")
