"""How text is cut into words before a byte-level vocabulary's merges: GGUF files name the rule, and carry it nowhere.

Each rule is a list of patterns that cut one after the other, as the tokenizers that the names stand for have them.
Names that mean the same are one rule. What needs more than patterns (Kimi K2, AFMoE, SuperBPE) is not here.
"""

from dataclasses import dataclass
from functools import cache

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATED = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"


def _cased(ending: str) -> str:
    """Words that begin anew at a capital after a small letter."""
    return f"{_BEFORE}{_UPPER}*{_LOWER}+{ending}|{_BEFORE}{_UPPER}+{_LOWER}*{ending}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to cut text into words."""

    names: tuple[str, ...]
    """As `tokenizer.ggml.pre` has them; a file that is written gets the first."""
    patterns: tuple[str, ...]
    whole_words: bool = False
    """A word that is a token is taken whole, without merges."""
    adds_bos: bool = False
    """Where the file does not say."""

    def pre_tokenizer(self) -> PreTokenizer:
        cuts = [Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])


RULES = (
    Rule(
        (
            *("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de"),
            *("a.x-4.0", "mellum", "modern-bert", "jina-v1-en", "jina-v2-code", "roberta-bpe"),
            *("mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
        ),
        (_GPT2,),
    ),
    Rule(
        (
            *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
            "mellum2",
        ),
        (r"\p{N}", _GPT2),
    ),
    Rule(
        (
            *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
            *("lfm2", "jina-v5-nano"),
        ),
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",),
        whole_words=True,
        adds_bos=True,
    ),
    Rule(("glm4", "glm5"), (rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",), whole_words=True),
    Rule(("dbrx", "smaug-bpe", "chatglm-bpe"), (rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",)),
    Rule(
        (
            *("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"),
            *("solar-open", "grok-2", "bailingmoe", "bailingmoe2", "llada-moe"),
        ),
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}|{_REST}",),
    ),
    Rule(
        ("qwen35",),
        (
            rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Rule(
        ("tekken",),
        (_cased("") + rf"|\p{{N}}|{_SLASHED}",),
        whole_words=True,
        adds_bos=True,
    ),
    Rule(
        ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
        (_cased(f"{_ENDINGS}?") + rf"|\p{{N}}{{1,3}}|{_SLASHED}",),
    ),
    Rule(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (r"\p{N}{1,3}", _CJK, _PUNCTUATED),
    ),
    Rule(
        ("deepseek-coder",),
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    ),
    Rule(
        ("seed-coder",),
        (rf"{_ENDINGS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    Rule(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    Rule(("bloom", "poro-chat", "gpt3-finnish"), (r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    Rule(("viking",), (r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    Rule(("default", ""), (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)

ANY = Rule((), ())
"""Where no words are cut."""

SAMPLE = (
    "Hello, world! It's 12345 o'clock; WE'LL see.\r\n\r\n\n  def f(x):\n\treturn x**2 / 3.14159\n\n"
    "   çalışma Über-Größe naïve Ǆ ǅ ǆ 日本語のテキスト123です。 한국어 देवनागरी اللغة العربية ٣٤٥ ½ ²\n"
    "https://example.org/a_b?c=d&e=%20 'quoted' \"double\" (a|b) [c] {d} <e> ~f` 🦙🦙‍♂️ … — ™\t\t x \u00a0\u2003y   "
    "camelCaseWords XMLHttp ABCdef I'M you'RE 1 22 333 4444 1,000,000.50 a/b//c /// \n/\n ।۔ 龥ࠀ가"
)
"""Text on which no two rules cut alike, but for those that differ in another way."""


@cache
def _by_name() -> dict[str, Rule]:
    return {name: rule for rule in RULES for name in rule.names}


def rule_named(name: str) -> Rule | None:
    """The rule that `tokenizer.ggml.pre` means, None for one that is not known here."""
    return _by_name().get(name)


def rule_like(tokenizer: Tokenizer) -> Rule | None:
    """The rule by which a tokenizer cuts its text; None where it cuts in a way of its own."""
    if tokenizer.pre_tokenizer is None:
        return None
    cuts = _cuts(tokenizer.pre_tokenizer)
    whole = bool(getattr(tokenizer.model, "ignore_merges", False))
    alike = [rule for rule in RULES if _cuts(rule.pre_tokenizer()) == cuts]
    return next((rule for rule in alike if rule.whole_words == whole), None)


def _cuts(pre_tokenizer: PreTokenizer) -> list[tuple[int, int]]:
    return [place for _, place in pre_tokenizer.pre_tokenize_str(SAMPLE)]
