"""Secrets: keys and tokens by the beginnings that their services gave them, and blocks of private keys.

A prefix is what tells a key from other random letters, so keys without one are not found, but for AWS's secret keys
beside their name. What may be long is recognised by its first `RECOGNISED_CHARS` characters.
"""

import re
import zlib
from collections.abc import Iterator

from llmhost.safety.pack.rule import PackRule, Span, Trait, is_free, matches, tokens

RECOGNISED_CHARS = 128
"""Every rule knows what it has before it by so many characters of it."""

_WORD = "[A-Za-z0-9_-]"
_WORDS = re.compile(r"[A-Za-z0-9_\-]*")
_DOTTED = re.compile(r"[A-Za-z0-9_.\-]*")

_KEY = r"PRIVATE KEY(?: BLOCK)?-----"
_BODY = r"(?:[A-Za-z0-9+/=:,\s]|\\[nr]|(?<=[A-Za-z0-9])-(?=[A-Za-z0-9]))*"
_END = rf"(?:-----END [A-Z ]{{0,24}}{_KEY})?"
_PRIVATE_KEY = (
    rf"-----BEGIN [A-Z ]{{0,24}}{_KEY}(?:\s|\\[nr]){{0,8}}(?:[A-Za-z0-9+/=]{{16}}|[A-Z][a-z]+(?:-[A-Z][a-z]+)?:)"
    rf"{_BODY}{_END}"
)

_OURS = re.compile(r"lh-sk-[0-9A-Za-z]{12}-[0-9A-Za-z]{49}")
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CHECKSUM_CHARS = 6


def own_keys(text: str, start: int) -> Iterator[Span]:
    """Keys of this program, by their checksum: what only looks like one is none."""
    for match in _OURS.finditer(text, start):
        body, ending = match[0][:-_CHECKSUM_CHARS], match[0][-_CHECKSUM_CHARS:]
        if is_free(text, *match.span()) and _checksum(body) == ending:
            yield match.span()


def _checksum(body: str) -> str:
    """As `tenants/tokens.py` makes it; a test holds the two together."""
    rest, letters = zlib.crc32(body.encode()), ""
    for _ in range(_CHECKSUM_CHARS):
        rest, digit = divmod(rest, len(_BASE62))
        letters = _BASE62[digit] + letters
    return letters


def _token(
    name: str, *heads: str, body: str = _WORD, least: int, most: int | None = None
) -> PackRule:
    literals = tuple(head.replace("\\", "") for head in heads)
    tail = None if most is not None and most <= RECOGNISED_CHARS // 2 else _WORDS
    find = tokens(*heads, body=body, least=least, most=most)
    return PackRule(f"secret.{name}", find, literals, trait=Trait.LONG_RUN, tail=tail)


SECRETS = (
    PackRule("secret.llmhost_key", own_keys, ("lh-sk-",), trait=Trait.LONG_RUN),
    _token("aws_key", "AKIA", "ASIA", "ABIA", "ACCA", body="[A-Z2-7]", least=16, most=16),
    PackRule(
        "secret.aws_secret",
        matches(
            r"(?:aws_?)?secret_?access_?key[\"'\s:=]{1,8}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])", re.I
        ),
        ("ecretAccessKey", "ecret_access_key", "ECRET_ACCESS_KEY"),
    ),
    _token("google_key", "AIza", least=35, most=35),
    _token("google_oauth", r"ya29\.", "GOCSPX-", least=20),
    PackRule(
        "secret.azure_key",
        matches(r"(?:Account|SharedAccess)Key=[A-Za-z0-9+/]{42,86}={1,2}"),
        ("Key=",),
    ),
    PackRule(
        "secret.private_key",
        matches(_PRIVATE_KEY),
        ("PRIVATE KEY",),
        tail=re.compile(f"{_BODY}({_END.rstrip('?')})?"),
    ),
    PackRule(
        "secret.age_key",
        matches(r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
        ("AGE-SECRET-KEY-1",),
        trait=Trait.LONG_RUN,
    ),
    _token(
        "github_token",
        "ghp_",
        "gho_",
        "ghu_",
        "ghs_",
        "ghr_",
        "github_pat_",
        body="[A-Za-z0-9_]",
        least=36,
    ),
    _token("gitlab_token", "glpat-", "gldt-", "glrt-", least=20),
    _token("slack_token", "xoxb-", "xoxp-", "xoxa-", "xoxr-", "xoxs-", "xoxe-", "xapp-", least=20),
    PackRule(
        "secret.slack_webhook",
        matches(r"hooks\.slack\.com/services/T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,28}"),
        ("hooks.slack.com",),
    ),
    _token(
        "stripe_key",
        "sk_live_",
        "sk_test_",
        "rk_live_",
        "rk_test_",
        "whsec_",
        body="[A-Za-z0-9]",
        least=20,
    ),
    PackRule(
        "secret.openai_key",
        matches(
            rf"(?<![A-Za-z0-9_-])sk-(?:(?:proj|svcacct|admin)-{_WORD}{{40,}}|[A-Za-z0-9]{{20}}T3BlbkFJ[A-Za-z0-9]{{20}})"
        ),
        ("sk-",),
        trait=Trait.LONG_RUN,
        tail=_WORDS,
    ),
    _token("anthropic_key", "sk-ant-", least=32),
    _token("huggingface_token", "hf_", body="[A-Za-z0-9]", least=34, most=40),
    _token("npm_token", "npm_", body="[A-Za-z0-9]", least=36, most=36),
    _token("pypi_token", "pypi-AgE", least=50),
    PackRule(
        "secret.sendgrid_key", matches(r"SG\.[\w-]{22}\.[\w-]{43}"), ("SG.",), trait=Trait.LONG_RUN
    ),
    _token("twilio_key", "SK", body="[0-9a-f]", least=32, most=32),
    PackRule(
        "secret.telegram_token",
        matches(r"(?<!\d)\d{8,10}:AA[\w-]{33}(?![\w-])"),
        (":AA",),
        trait=Trait.LONG_RUN,
    ),
    _token(
        "shopify_token",
        "shpat_",
        "shpca_",
        "shppa_",
        "shpss_",
        body="[0-9a-fA-F]",
        least=32,
        most=32,
    ),
    _token(
        "digitalocean_token", "dop_v1_", "doo_v1_", "dor_v1_", body="[0-9a-f]", least=64, most=64
    ),
    _token("databricks_token", "dapi", body="[0-9a-f]", least=32, most=32),
    _token("vault_token", r"hvs\.", r"hvb\.", least=24),
    _token("docker_token", "dckr_pat_", least=27),
    _token("grafana_token", "glsa_", "glc_", body="[A-Za-z0-9_=+/]", least=32),
    PackRule(
        "secret.jwt",
        matches(
            r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,100}\.(?:eyJ[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?)"
        ),
        ("eyJ",),
        trait=Trait.LONG_RUN,
        tail=_DOTTED,
    ),
    PackRule(
        "secret.url_password",
        matches(r"://([^\s/:@\"'<>]{1,40}:[^\s/:@\"'<>]{3,60})@[A-Za-z0-9\[]"),
        ("://",),
        ("@",),
    ),
)
