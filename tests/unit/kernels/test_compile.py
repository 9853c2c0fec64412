"""All kernels through Triton's real compiler, in the types that a GPU is used with, and what became of them."""

from itertools import chain

import pytest
from tests.unit.kernels.gpu_compiler import Facts, told_of
from tests.unit.kernels.gpu_report import MODULES, row

FROM_MEMORY = ("decode", "_vector", "_skinny")
"""Kernels that are as fast as what they read comes in."""


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[str, list[Facts]]]:
    """By module; all in one process, which takes longer to start than to compile."""
    return told_of(MODULES)


@pytest.fixture(scope="module")
def every(told: dict[str, tuple[str, list[Facts]]]) -> list[Facts]:
    return list(chain.from_iterable(facts for _, facts in told.values()))


def rows(facts: list[Facts]) -> str:
    return "\n".join(map(row, facts))


@pytest.mark.parametrize("module", MODULES)
def test_the_kernels_compile_for_a_gpu(
    told: dict[str, tuple[str, list[Facts]]], module: str
) -> None:
    failure, facts = told[module]
    assert failure == ""
    assert facts


def test_whatever_a_thread_works_with_is_in_its_registers(every: list[Facts]) -> None:
    assert not rows([one for one in every if one.spills or one.stack_bytes])


def test_programs_fit_into_the_shared_memory_of_the_gpus_that_they_are_for(
    every: list[Facts],
) -> None:
    assert {one.shared_limit // 2**10 for one in every} == {96, 99, 163, 227}
    assert not rows([one for one in every if one.shared_bytes > one.shared_limit])


def test_keys_and_weights_are_read_sixteen_bytes_at_a_time(every: list[Facts]) -> None:
    read = [one for one in every if one.kernel in FROM_MEMORY and not one.form.endswith(" 64 rows")]
    assert {one.kernel for one in read} == {*FROM_MEMORY}
    narrow = [one for one in read if not one.loop or one.loop.loads.get("16", 0) < one.turn_bytes]
    assert not rows(narrow)


def test_products_of_many_rows_are_those_of_four_warps_together(every: list[Facts]) -> None:
    many = [
        one
        for one in every
        if (one.kernel == "prefill" and one.form.endswith(("of 64", "of 128")))
        or (one.kernel == "_skinny" and one.form.endswith(" 64 rows"))
    ]
    assert len(many) >= 5
    assert not rows([one for one in many if one.matrix != ["HGMMA"]])


def test_arithmetic_takes_less_time_than_what_is_read_for_few_rows(every: list[Facts]) -> None:
    few = [
        one
        for one in every
        if one.kernel in FROM_MEMORY
        and not one.form.endswith(" 64 rows")
        and "fp8e4nv 80" not in one.form
    ]
    assert len(few) >= 10
    slow = [
        one for one in few if not one.loop or one.loop.issue_clocks > 1.1 * one.loop.memory_clocks
    ]
    assert not rows(slow)
