"""Packed matrices are the matrices that they were made of, and their products float32's."""

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.test_torch_cpu_linear import widened
from torch import nn

from llmhost.engines.torch import packed
from llmhost.engines.torch.cpu_linear import WideningLinear, pack_beside
from llmhost.engines.torch.packed import CantPack, PackedMatrix, Packing, can_pack

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of torch has no FBGEMM")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 8, 15, 33, 100]),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    size=st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
    piece=st.sampled_from([500, 2**23]),
)
def test_nothing_of_a_matrix_is_lost_and_products_are_float32s(
    rows: int, sizes: tuple[int, int], dtype: torch.dtype, size: float, piece: int
) -> None:
    torch.manual_seed(rows)
    weight = (torch.randn(sizes) * size).to(dtype)
    if not weight.any():
        weight[0, 0] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "MOST_ELEMENTS", piece)
        matrix = PackedMatrix.of(weight)
    asked = torch.randn(rows, sizes[1])

    assert torch.equal(matrix.unpacked(), weight)
    exact = asked.double() @ weight.double().t()
    torch.testing.assert_close(
        matrix.product(asked).double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max())
    )


@pytest.mark.parametrize(
    "numbers", [[0.0, 0.0], [1.0, float("inf")], [float("nan"), 1.0], [1e30, 1e-9]]
)
def test_a_matrix_that_would_not_be_the_same_is_refused(numbers: list[float]) -> None:
    with pytest.raises(CantPack):
        PackedMatrix.of(torch.tensor([numbers, numbers], dtype=torch.bfloat16))


def test_no_more_than_a_piece_is_unpacked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MOST_ELEMENTS", 64)
    proved, whole = [], PackedMatrix._prove

    def prove(matrix: PackedMatrix, weight: torch.Tensor) -> None:
        proved.append(weight.numel())
        whole(matrix, weight)

    monkeypatch.setattr(PackedMatrix, "_prove", prove)
    PackedMatrix.of(torch.randn(40, 16).bfloat16())

    assert proved == [64] * 10


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_a_layer_gives_the_same_packed_and_keeps_its_size_and_its_weights(rows: int) -> None:
    linear = widened(96, 64, torch.bfloat16)
    before, asked = linear.weight.clone(), torch.randn(1, rows, 96).bfloat16()
    expected = linear(asked)

    linear.pack()

    assert linear.packed is not None
    torch.testing.assert_close(linear(asked), expected, rtol=2**-7, atol=2**-7)
    assert torch.equal(linear.weight, before)
    kept = next(linear.parameters())
    assert (kept.shape, kept.dtype) == (before.shape, before.dtype)
    assert kept.untyped_storage().nbytes() == 2


def test_a_layer_that_cant_be_packed_stays_as_it_was() -> None:
    linear = widened(8, 8, torch.bfloat16)
    nn.init.zeros_(linear.weight)

    linear.pack()

    assert linear.packed is None
    assert linear(torch.ones(1, 8).bfloat16()).shape == (1, 8)


def test_weights_that_an_embedding_has_too_are_not_packed() -> None:
    own, tied = (widened(16, 16, torch.bfloat16) for _ in range(2))
    embedding = nn.Embedding(16, 16)
    embedding.weight = next(tied.parameters())

    pack_beside(nn.Sequential(embedding, own, tied)).wait()

    assert (own.packed is None, tied.packed is None) == (False, True)


def test_closing_waits_for_the_piece_at_hand_and_begins_no_other() -> None:
    began, wishes = threading.Event(), []

    class Slow(WideningLinear):
        def pack(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
            began.set()
            while is_wanted():
                pass
            wishes.append(is_wanted())

    packing = Packing([Slow(1, 1), Slow(1, 1)], threads=1)
    assert began.wait(10)
    packing.close()

    assert wishes == [False]


def test_a_model_that_is_loaded_meanwhile_in_another_type_changes_nothing():
    weight = torch.randn(48, 64).bfloat16()
    before = torch.get_default_dtype()
    torch.set_default_dtype(
        torch.float16
    )  # as transformers does for the whole process while it makes a model
    try:
        packed = PackedMatrix.of(weight)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(packed.unpacked(), weight)
    assert packed.unscale.dtype == torch.float32
