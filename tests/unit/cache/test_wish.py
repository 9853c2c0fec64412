"""What headers say of the cache."""

import pytest

from llmhost.cache.wish import NO_WISH, Wish, wish_of
from llmhost.core.errors import InvalidValue


@pytest.mark.parametrize(
    ("headers", "wish"),
    [
        ({}, NO_WISH),
        ({"x-llmhost-cache": "on"}, Wish(is_asked=True)),
        ({"x-llmhost-cache": "off"}, Wish(reads=False, stores=False)),
        ({"x-llmhost-cache": "refresh"}, Wish(is_asked=True, reads=False)),
        ({"x-llmhost-cache": "only"}, Wish(is_asked=True, is_only=True)),
        ({"cache-control": "no-cache"}, Wish(reads=False)),
        ({"cache-control": "No-Store"}, Wish(reads=False, stores=False)),
        ({"cache-control": "max-age=60"}, Wish(most_age_s=60)),
        ({"cache-control": "max-age=soon, private"}, Wish()),
        (
            {"cache-control": "only-if-cached, max-age=5"},
            Wish(is_asked=True, is_only=True, most_age_s=5),
        ),
        ({"x-llmhost-cache": "on", "x-llmhost-cache-tag": "a:b"}, Wish(is_asked=True, tag="a:b")),
    ],
    ids=str,
)
def test_headers_say_what_is_wished(headers: dict[str, str], wish: Wish):
    assert wish_of(headers) == wish


@pytest.mark.parametrize(
    "headers", [{"x-llmhost-cache": "yes"}, {"x-llmhost-cache-tag": "a b"}], ids=str
)
def test_words_that_there_are_not_are_refused(headers: dict[str, str]):
    with pytest.raises(InvalidValue):
        wish_of(headers)
