"""What a caller hears where nothing may be drawn: of a form that is too complex it is the caller's error."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from llmhost.core.errors import EngineFailed, FormTooComplex
from llmhost.core.sampling import Sampling
from llmhost.engines.drawing import Place, nothing_left


@pytest.mark.parametrize(
    ("grammar", "sampling", "kind", "said"),
    [
        (object(), {}, FormTooComplex, "too complex"),
        (object(), {"allowed_token_ids": (1,)}, EngineFailed, "the grammar and allowed_token_ids"),
        (None, {"bad_words": ((1,),)}, EngineFailed, "bad_words"),
    ],
)
def test_what_left_nothing_is_named(
    grammar: object, sampling: Any, kind: type[EngineFailed], said: str
) -> None:
    facts = {"start": 3, "tokens": (1, 2), "drafts": 0, "seq_id": 1, "barred_until": 0}
    row = SimpleNamespace(grammar=grammar, sampling=Sampling(**sampling), **facts)

    failure = nothing_left(Place(cast(Any, row)))
    assert type(failure) is kind
    assert said in failure.message
