"""Blocks in sequences of llama.cpp: whatever a scheduler does, a row finds what its table says, and no cell is lost."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import initialize
from tests.unit.engines.cells_runner import CellsRunner, ModelCells
from tests.unit.engines.runner_contract import RunnerContract
from tests.unit.schedule.kit import VOCAB, Workbench
from tests.unit.schedule.test_scheduler_properties import SchedulerMachine
from tests.unit.schedule.test_scheduler_properties import limits as some_limits

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.sampling import Sampling
from llmhost.core.step import KvMove, Row
from llmhost.engines.llama.residents import Residents
from llmhost.schedule.limits import SchedulerLimits

SIZE = 4


class TestContract(RunnerContract):
    @pytest.fixture(params=[True, False], ids=["one buffer", "a buffer each"])
    def runner(self, request: pytest.FixtureRequest) -> CellsRunner:
        options = FakeOptions(vocab=256)
        return CellsRunner(options, block_tokens=16, sequences=40, shares=request.param)


class CellsBench(Workbench):
    """With few sequences, so that they make room for one another."""

    shares = True

    def _settle_in(self, limits: SchedulerLimits) -> None:
        super()._settle_in(limits)
        self.runner = CellsRunner(
            FakeOptions(vocab=VOCAB),
            block_tokens=limits.block_tokens,
            sequences=limits.max_batch_size + 2,
            shares=self.shares,
        )
        self.runner.set_kv_blocks(limits.kv_blocks)


class CellsMachine(SchedulerMachine):
    @initialize(limits=some_limits)
    def open(self, limits: SchedulerLimits) -> None:
        self.bench = CellsBench(limits)


class ApartBench(CellsBench):
    shares = False


class ApartMachine(SchedulerMachine):
    @initialize(limits=some_limits)
    def open(self, limits: SchedulerLimits) -> None:
        self.bench = ApartBench(limits)


FEW = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyLifeOfAScheduler = CellsMachine.TestCase
TestAnyLifeOfAScheduler.settings = FEW
TestAnyLifeWithABufferEach = ApartMachine.TestCase
TestAnyLifeWithABufferEach.settings = FEW


def residents(sequences: int = 4) -> Residents:
    return Residents(ModelCells(1000, sequences - 1), block_tokens=SIZE, sequences=sequences)


def row(seq_id: int, start: int, count: int, blocks: list[int]) -> Row:
    return Row(seq_id, [1] * count, start, blocks, Sampling(), 0, True)


def test_a_table_that_names_what_nobody_computed_fails() -> None:
    with pytest.raises(EngineFailed, match="KV block 7 are lost"):
        residents().take_in([row(1, SIZE, 1, [7, 8])])


def test_more_rows_than_sequences_are_refused_with_the_number() -> None:
    with pytest.raises(EngineFailed, match="at most 3 sequences"):
        residents(4).take_in([row(i, 0, 1, [i]) for i in range(4)])


def test_a_block_that_comes_back_from_the_host_is_found_where_it_is_told_to_be() -> None:
    held = residents()
    held.take_in([row(1, 0, SIZE, [5])])

    held.move([KvMove(5, 0, is_to_host=True)])
    held.take_in([row(2, 0, SIZE, [5])])
    held.move([KvMove(9, 0, is_to_host=False)])

    held.take_in([row(3, SIZE, 1, [9, 2])])


def test_a_row_that_begins_anew_leaves_what_others_may_know() -> None:
    held = residents()
    held.take_in([row(1, 0, 2 * SIZE, [5, 6])])

    held.take_in([row(1, 0, SIZE, [7])])

    held.take_in([row(2, 2 * SIZE, 1, [5, 6, 9])])


def test_wrong_guesses_do_not_come_back_from_host_memory() -> None:
    cells = ModelCells(1000, 2)
    held = Residents(cells, block_tokens=SIZE, sequences=3)
    [sequence] = held.take_in([row(1, 0, 7, [1, 2])])
    for position in range(7):
        cells.add(sequence, position, position)
    held.take_in([row(2, 0, 1, [3])])
    held.take_in([row(3, 0, 1, [4])])
    assert not [cell for cell in cells.cells if cell.position], "it was not evicted"

    [sequence] = held.take_in([row(1, 5, 1, [1, 2])])

    assert sorted(cells.of(sequence)) == [0, 1, 2, 3, 4]
