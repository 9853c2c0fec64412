"""When a file that is uploaded is to be forgotten, in the forms in which clients say so."""

import pytest

from llmhost.api.files.wire import lasts_s_of
from llmhost.core.errors import InvalidValue


def test_an_expiry_is_two_fields_of_a_form_or_one_of_json() -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}

    assert lasts_s_of(fields) == 3600
    assert lasts_s_of({"expires_after": '{"anchor": "created_at", "seconds": 7200}'}) == 7200
    assert lasts_s_of({"purpose": "batch"}) is None


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "3600", '["created_at", 3600]', '{"seconds": 3600}']
)
def test_an_expiry_that_can_not_be_read_is_not_passed_over(text: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        lasts_s_of({"expires_after": text})
    assert (refused.value.param or "").startswith("expires_after")


def test_an_expiry_that_only_begins_like_one_is_refused() -> None:
    fields = {"expires_after[anchor]": "created_at"}
    with pytest.raises(InvalidValue):
        lasts_s_of({**fields, "expires_after[seconds]": "000000086400" + 20 * "9"})
