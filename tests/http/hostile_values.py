"""Values that nobody should send, and bodies that are none."""

import json
from urllib.parse import quote

SQL = [
    "'; DROP TABLE keys; --",
    "' OR '1'='1",
    "x') UNION SELECT digest FROM secrets --",
    "\"; ATTACH DATABASE '/tmp/zq' AS z; --",
    "1; PRAGMA writable_schema=1",
    "%' ESCAPE '\\",
]
MONEY = [
    *("-1", "-0.01", "0", "NaN", "Infinity", "1e9", "1e-9", "0.0000000001", "9" * 40, "4611686019"),
    *("1,50", "$1", "1.", ".5", "+1", " 1", "1_000", "\u0661", "0.1.2", "--1"),
]
"""Dollars as text, or what looks like them."""
TIMES = ["Mars/Olympus", "../../etc/localtime", "UTC\0", "Europe/Zurich", "day", "balance", "PT1H"]
TEXTS = [
    *SQL,
    *MONEY,
    *TIMES,
    *("", " ", ".", "..", "../../etc/passwd", "a/b", "%2e%2e%2f", "{{7*7}}", "${jndi:ldap://x}"),
    *("\0", "a\0b", "\u202eevil", "\ufb01", "caf\u00e9", "cafe\u0301", "\U0001f600" * 64),
    *("x" * 65, "\r\nx-evil: 1", "__proto__", "-", "*", "\u0661\u0662", "\ufeff", "0x10", "1e5"),
]
"""Twins under normalisation, text that runs backwards, ends of strings and paths, and other people's languages."""
LONGEST_REFUSAL_BYTES = 20_000
LONG = "y" * 1_000_000
NUMBERS = [
    *("-1", "0", "-0", "0.5", "-0.0", "1e308", "1e309", "-1e400", "NaN", "Infinity", "5e-324"),
    *(str(2**31), str(2**53 + 1), str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(2**64)),
    *("9" * 400, "1e2", "1.0", "0x10", "01", "+1"),
]
OTHERS = ["true", "false", "null", "[]", "{}", "[1]", '[["a"]]', '{"a":{"b":[]}}', "[null]", '"5"']
RAW_TEXTS = ['"\\ud800"', '"\\ud800\\u0041"', '"\\u0000"', '"\xff"', '"\\x41"']
"""Surrogates without a partner, and what is no JSON at all."""
FRAGMENTS = [*map(json.dumps, TEXTS), *NUMBERS, *OTHERS, *RAW_TEXTS]
"""JSON, or nearly, to stand where a value should."""
PATH_PARTS = [
    *(quote(text, safe="") for text in TEXTS if text not in ("", "-")),
    *("%2F", "%00", "..%2f..%2f", "%ff%fe", ";a=b", "%", "%zz", "a%20b", "\xe9", "z" * 8000),
]

DEEP = 60_000
DEEP_FRAGMENTS = [
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    json.dumps(["x"] * 3000),
]
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"1",
    "half": b'{"name": "x',
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"name":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a field": b'{"org":"pit","name":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "twice the same": b'{"name":"zz-a","name":"zz-b","org":"zz-nobody","org":"pit"}',
    "utf-16": '{"name":"x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"name":"x"}',
    "not utf-8": b'{"name":"\xff\xfe"}',
    "nul after the end": b'{"name":"zz-c"}\0',
    "two values": b'{"name":"zz-d"}{"name":"zz-e"}',
    "a comment": b'{"name":"zz-f"/**/}',
    "many unknown keys": json.dumps({f"k{i}": i for i in range(5000)}).encode(),
    "an unknown key": b'{"name":"zz-g","org":"pit","is_operator":true}',
    "a key of the prototype": b'{"__proto__":{"role":"admin"},"__class__":"x"}',
    "gzip": b"\x1f\x8b\x08\x00" + b"\0" * 30,
}
HUGE = b'{"name":"' + b"h" * 10_000_000 + b'"}'
"""Ten megabytes; a server need not take that much, but has to say so."""
TYPES = [
    *("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; x"),
    *(
        "application/x-www-form-urlencoded",
        "application/msgpack",
        "",
        "application/json\x00",
        "*/*",
    ),
]
ANY_END = frozenset({0, *range(200, 500)})
"""Of what is no request: hanging up is an answer."""
METHODS = ["PUT", "TRACE", "OPTIONS", "HEAD", "PATCH", "DELETE", "FOO", "get", "POST", "GET"]
