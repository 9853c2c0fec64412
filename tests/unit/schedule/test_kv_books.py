"""The books: every block is free or held once, through any taking, giving back and resizing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.schedule.kv_books import KvBooks

acts = st.lists(
    st.tuples(st.sampled_from(["take", "give", "resize"]), st.integers(0, 12)), max_size=40
)


@given(st.integers(0, 12), acts)
@settings(max_examples=150, deadline=None)
def test_blocks_are_free_or_held_once_whatever_happens(
    total: int, acts: list[tuple[str, int]]
) -> None:
    books, held = KvBooks(total, 4), []
    for act, number in acts:
        if act == "take" and number <= books.free:
            held.append(books.take(number))
            assert len(held[-1]) == number
        elif act == "give" and held:
            books.give_back(held.pop(number % len(held)))
        elif act == "resize":
            for blocks in [b for b in held if any(n >= number for n in b)]:
                held.remove(blocks)
                books.give_back(blocks)
            books.resize(number)
            assert books.total == number
        books.check(held)
        assert books.free + sum(map(len, held)) == books.total


def test_a_block_given_back_twice_is_found_by_the_audit() -> None:
    books = KvBooks(4, 4)
    blocks = books.take(2)
    books.give_back(blocks)
    books.give_back(blocks)
    with pytest.raises(AssertionError):
        books.check([])


def test_a_block_held_by_two_is_found_by_the_audit() -> None:
    books = KvBooks(4, 4)
    blocks = books.take(1)
    with pytest.raises(AssertionError):
        books.check([blocks, blocks])


def test_a_lost_block_is_found_by_the_audit() -> None:
    books = KvBooks(4, 4)
    books.take(1)
    with pytest.raises(AssertionError):
        books.check([])


def test_a_block_that_is_none_of_ours_is_found_by_the_audit() -> None:
    books = KvBooks(4, 4)
    books.take(1)
    with pytest.raises(AssertionError):
        books.check([[7]])


def test_more_than_is_free_can_not_be_taken() -> None:
    books = KvBooks(2, 4)
    with pytest.raises(AssertionError):
        books.take(3)
    books.check([])


def test_low_numbers_go_out_first_so_that_a_shrunken_cache_preempts_few() -> None:
    books = KvBooks(3, 4)
    assert books.take(2) == [0, 1]
    books.resize(5)
    assert books.take(3) == [2, 3, 4]
