"""Matrices as one: without a copy where they lie side by side."""

import torch

from llmhost.engines.torch.joined import joined, side_by_side

CPU = torch.device("cpu")


def test_rooms_side_by_side_are_joined_without_a_copy():
    query, key = side_by_side([torch.empty(8, 64), torch.empty(4, 64)], CPU)
    query.fill_(1.0)
    key.fill_(2.0)

    both = joined([query, key])

    assert both.equal(torch.cat([query, key]))
    assert both.data_ptr() == query.data_ptr()
    assert both.is_contiguous()


def test_biases_are_joined_too():
    parts = side_by_side([torch.empty(64), torch.empty(128)], CPU)
    parts[0].fill_(1.0)
    parts[1].fill_(2.0)
    assert joined(parts).tolist() == [1.0] * 64 + [2.0] * 128


def test_what_does_not_lie_side_by_side_is_copied():
    first, second = torch.ones(2, 3), torch.zeros(1, 3)
    both = joined([first, second])
    assert both.equal(torch.cat([first, second]))
    assert both.data_ptr() != first.data_ptr()


def test_parts_in_another_order_are_copied():
    query, key = side_by_side([torch.empty(8, 64), torch.empty(4, 64)], CPU)
    query.fill_(1.0)
    key.fill_(2.0)
    assert joined([key, query]).equal(torch.cat([key, query]))


def test_a_room_that_would_begin_at_an_odd_place_is_one_of_its_own():
    first, second = side_by_side([torch.empty(3), torch.empty(5)], CPU)
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_widths_that_differ_have_rooms_of_their_own():
    shapes = [(64, 64), (64, 32)]
    rooms = side_by_side([torch.empty(shape) for shape in shapes], CPU)
    assert [tuple(room.shape) for room in rooms] == shapes
    assert joined([torch.ones(2, 3)]).equal(torch.ones(2, 3))
