"""What a step will take is learned from steps, and prompts get the room that it leaves."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.schedule.predictor import ENOUGH_STEPS, StepPredictor, StepWork, prompt_room

DECODING = StepWork().plus(100, 1).plus(200, 1)

weights = st.tuples(st.floats(0.1, 20), st.floats(0, 2), st.floats(0.01, 2), st.floats(0, 0.05))


def cost(weights: tuple[float, float, float, float], work: StepWork) -> float:
    step, row, token, attended = weights
    return step + row * work.rows + token * work.tokens + attended * work.attended / 1024


def a_step(numbers: random.Random) -> StepWork:
    work = StepWork()
    for _ in range(numbers.randint(1, 8)):
        work = work.plus(numbers.randint(0, 500), 1)
    if numbers.random() < 0.5:
        work = work.plus(numbers.randint(0, 500), numbers.randint(2, 300))
    return work


def taught(
    weights: tuple[float, float, float, float], *, noise: float = 0.0, steps: int = 120
) -> StepPredictor:
    predictor, numbers = StepPredictor(), random.Random(4)
    for _ in range(steps):
        work = a_step(numbers)
        predictor.learn(work, cost(weights, work) * (1 + noise * numbers.uniform(-1, 1)))
    return predictor


def test_nothing_is_predicted_before_enough_was_seen() -> None:
    predictor = StepPredictor()
    for _ in range(ENOUGH_STEPS):
        assert predictor.predict(DECODING) is None
        predictor.learn(DECODING, 5.0)
    assert predictor.predict(DECODING) == pytest.approx(5.0, rel=0.05)


@given(weights)
@settings(max_examples=40, deadline=None)
def test_a_linear_machine_is_learned(weights: tuple[float, float, float, float]) -> None:
    predictor, numbers = taught(weights), random.Random(9)
    for _ in range(20):
        work = a_step(numbers)
        assert predictor.predict(work) == pytest.approx(cost(weights, work), rel=0.15)


def test_noise_is_averaged_out() -> None:
    predictor = taught((5.0, 0.1, 0.2, 0.0), noise=0.3)
    assert predictor.predict(DECODING.plus(0, 100)) == pytest.approx(25.7, rel=0.2)


def test_a_machine_that_becomes_slower_is_learned_anew() -> None:
    predictor, numbers = taught((5.0, 0.0, 0.1, 0.0)), random.Random(1)
    for _ in range(150):
        work = a_step(numbers)
        predictor.learn(work, 3 * cost((5.0, 0.0, 0.1, 0.0), work))
    assert predictor.predict(DECODING) == pytest.approx(15.6, rel=0.2)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 400), st.floats(0.01, 1e4)), max_size=30)
)
@settings(max_examples=60, deadline=None)
def test_a_prediction_is_never_negative_and_grows_with_the_work(
    steps: list[tuple[int, int, float]],
) -> None:
    predictor = StepPredictor()
    for start, tokens, ms in steps:
        predictor.learn(StepWork().plus(start, tokens), ms)
    small, large = predictor.predict(DECODING.plus(0, 8)), predictor.predict(DECODING.plus(0, 99))
    if small is not None and large is not None:
        assert 0 <= small <= large


@given(weights, st.floats(1, 200), st.integers(0, 4000))
@settings(max_examples=60, deadline=None)
def test_the_room_for_a_prompt_keeps_the_step_within_its_target(
    weights: tuple[float, float, float, float], target_ms: float, start: int
) -> None:
    predictor = taught(weights)
    predictor.tried_tokens = 1024
    room = prompt_room(predictor, DECODING, start=start, target_ms=target_ms, least=16, most=1024)
    assert 16 <= room <= 1024
    if room > 16:
        predicted = predictor.predict(DECODING.plus(start, room))
        assert predicted is not None and predicted <= target_ms
    if room < 1024 - 16:
        predicted = predictor.predict_at_most(DECODING.plus(start, room + 17))
        assert predicted is not None and predicted > target_ms


def test_a_prompt_gets_on_even_when_nothing_is_known_or_all_is_too_slow() -> None:
    room = prompt_room(StepPredictor(), DECODING, start=0, target_ms=1, least=16, most=512)
    assert room == 16
    slow = taught((500.0, 0.0, 5.0, 0.0))
    assert prompt_room(slow, DECODING, start=0, target_ms=1, least=16, most=512) == 16
    assert prompt_room(slow, DECODING, start=0, target_ms=1, least=16, most=9) == 9


def test_on_a_machine_that_can_not_be_relied_on_chunks_are_smaller() -> None:
    steady, shaky = taught((5.0, 0.1, 0.2, 0.0)), taught((5.0, 0.1, 0.2, 0.0), noise=0.5)
    rooms = [
        prompt_room(predictor, DECODING, start=0, target_ms=60, least=16, most=1024)
        for predictor in (steady, shaky)
    ]
    assert rooms[1] < rooms[0]
    assert rooms[0] > 0.9 * (60 - 5.5) / 0.2


def test_chunks_grow_by_steps_that_were_measured() -> None:
    predictor = StepPredictor()
    for _ in range(9):
        predictor.learn(StepWork().plus(0, 800), 90.0)
        predictor.learn(DECODING, 10.0)
    rooms = []
    for _ in range(4):
        room = prompt_room(predictor, DECODING, start=0, target_ms=60, least=16, most=1024)
        predictor.learn(DECODING.plus(0, room), 10.0 + 0.1 * room)
        rooms.append(room)
    assert rooms == [16, 32, 64, 128]


@given(weights, st.integers(2, 64), st.integers(0, 4000))
@settings(max_examples=30, deadline=None)
def test_many_steps_with_one_size_of_chunk_do_not_change_what_one_without_is_predicted_to_take(
    weights: tuple[float, float, float, float], chunk: int, start: int
) -> None:
    predictor = taught(weights)
    for step in range(150):
        work = DECODING.plus(start + step * chunk, chunk)
        predictor.learn(work, cost(weights, work))
    assert predictor.predict(DECODING) == pytest.approx(cost(weights, DECODING), rel=0.15)


@given(st.floats(1, 50), st.floats(0.1, 2), st.floats(0, 1), st.floats(0, 20))
@settings(max_examples=30, deadline=None)
def test_what_a_chunk_takes_to_read_what_is_before_it_is_learned(
    alone: float, token: float, attended: float, past: float
) -> None:
    def takes(start: int, chunk: int) -> float:
        fed = token * chunk + attended * chunk * (start + chunk / 2) / 1024
        return alone + fed + past * start / 1024

    predictor, numbers = StepPredictor(), random.Random(5)
    for _ in range(20):
        predictor.learn(DECODING, alone)
    for step in range(100):
        chunk = numbers.choice((8, 16, 32))
        predictor.learn(DECODING.plus(40 * step, chunk), takes(40 * step, chunk))
    for chunk in (8, 12, 32):
        predicted = predictor.predict(DECODING.plus(4000, chunk))
        assert predicted == pytest.approx(takes(4000, chunk), rel=0.1)
