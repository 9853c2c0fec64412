"""Eight reviewers on some hundred texts, with the server killed three times: each is decided once, and none is lost."""

import time
from collections.abc import Callable

import pytest
from reviewers import Crowd, check, prepare
from server_process import Node

pytestmark = pytest.mark.bars

TEXTS = 600
KILL_AT = (120, 300, 450)


def test_no_text_is_decided_twice_and_none_is_lost_over_kills(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node("[models.echo]\nengine = 'fake'\n")
    keys, ids = prepare(node.data_dir, reviewers=8, texts=TEXTS)
    node.start()
    crowd, began = Crowd(node, keys), time.monotonic()

    crowd.work(KILL_AT)

    took_s = time.monotonic() - began
    check(crowd, ids)
    told = len(crowd.decided)
    bar(
        f"{TEXTS} texts, 8 reviewers, {len(KILL_AT)} kills, {took_s:.0f} s: {told} decisions heard of, each once;"
        f" {TEXTS - told} on disk whose answers a kill cut off; {crowd.refused[409]} came too late (409); none lost"
    )
