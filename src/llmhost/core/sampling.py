"""How the next token is drawn."""

from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` None and `top_p` 1 switch those filters off.

    In this order: allowed ids, bad words, penalties, bias, then temperature, `top_k`, `top_p`, `min_p`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest one are not drawn; 0 switches it off."""
    repetition_penalty: float = 1.0
    """Divides positive logits and multiplies negative ones of tokens that the prompt or the answer has."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit once for each time that the answer has it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""
    allowed_token_ids: tuple[int, ...] | None = None
    """Only these are drawn; None allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the answer may not hold: the last token of one is not drawn after the others."""
    logprobs: int | None = None
    """Report the log probability of each drawn token, and so many of the likeliest beside it; None reports none."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt but the first."""
    prompt_logprobs_from: int = 0
    """Nothing is asked of tokens before this position, so a cache may have them. What is computed may be told all the
    same."""
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def is_plain(self) -> bool:
        """One token is all that is wanted, and nothing but temperature and the filters after it touches the logits."""
        return _more_than_a_token(self) == _NO_MORE

    @property
    def goes_ahead(self) -> bool:
        """It can be drawn by what the device knows, and what is told of the token can be told later. Log probabilities
        of the prompt are not."""
        return self.prompt_logprobs is None


_more_than_a_token = attrgetter(
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "logprobs",
    "prompt_logprobs",
)
DEFAULT_SAMPLING = Sampling()
_NO_MORE = _more_than_a_token(DEFAULT_SAMPLING)
