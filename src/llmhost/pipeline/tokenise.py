"""Text in a model's tokens and back, for those who ask for that alone. Pure but for the tokenizer."""

from collections.abc import Sequence

from llmhost.core.errors import InvalidValue
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest, Kind
from llmhost.pipeline.terms import rendered


def tokens_of(request: GenerationRequest, tokenizer: Tokenizer) -> list[int]:
    """The ids of a chat as its template writes it, or of one text; none of an empty one. Raises BadRequest."""
    if request.kind is Kind.CHAT:
        return tokenizer.encode(rendered(request, tokenizer), add_special_tokens=False)
    (text,) = request.prompts
    assert isinstance(text, str), "the edge takes text"
    return tokenizer.encode(text, add_special_tokens=request.add_special_tokens)


def text_of(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of ids, special tokens as they are written. Raises InvalidValue that names an id."""
    size = tokenizer.vocab_size
    for place, token in enumerate(tokens):
        if not 0 <= token < size:
            raise InvalidValue(
                f"Token id {token} is outside this model's vocabulary of {size}.",
                param=f"tokens[{place}]",
            )
    return tokenizer.decode(tokens, skip_special_tokens=False)
