"""A few of each kind of hostile input to keys, tenants, budgets and bills; `make bars` sends all of them."""

from collections.abc import Iterator

import pytest
from hostile import KINDS, some_of
from hostile_ground import SETTINGS, Ground
from server_process import Node

OF_EACH_KIND = 25


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    node = Node(tmp_path_factory.mktemp("hostile"), SETTINGS)
    try:
        yield Ground(node.start()).prepare()
        assert node.stop() == 0
    finally:
        node.close()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_refused_without_a_fault_or_a_leak(ground: Ground, kind: str) -> None:
    ground.failures.clear()
    foreign = ground.foreign_rows()

    for attack in some_of(list(KINDS[kind](ground)), 3 if kind == "huge bodies" else OF_EACH_KIND):
        ground.fire(attack)

    assert ground.foreign_rows() == foreign
    ground.check()
