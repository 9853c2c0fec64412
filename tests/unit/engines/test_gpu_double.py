"""The double raises where a GPU would do harm, and not otherwise."""

import threading
from collections.abc import Iterator

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
import triton
import triton.language as tl
from tests.gpu_double import breaks, installed, memory, no_waiting
from tests.gpu_double.rules import (
    ChangedTooEarly,
    GraphOutdated,
    NotCapturable,
    OutOfOrder,
    UsedTooEarly,
    UsedTooLate,
    Waited,
)
from torch import Tensor

HERE = "cuda:0"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    with installed():
        yield
    assert torch.cuda.device_count() == 0
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(1, device=HERE)


def numbers(count: int = 4) -> Tensor:
    return torch.arange(count, dtype=torch.float32, device=HERE)


def pinned(count: int = 4) -> Tensor:
    return torch.zeros(count, pin_memory=True)


@triton.jit
def _double(x, out, block: tl.constexpr):
    at = tl.arange(0, block)
    tl.store(out + at, tl.load(x + at) * 2)


# ------------------------------------------------------------ tensors


def test_tensors_are_on_the_device_and_hold_numbers() -> None:
    x = numbers(6).view(2, 3)
    x[0] += 10
    assert x.is_cuda and x.T.device == torch.device(HERE)
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1
    assert x.tolist() == [[10, 11, 12], [3, 4, 5]]
    assert x.cpu().device.type == "cpu"
    assert x[[1]].tolist() == x[x < 10][None].tolist() == [[3, 4, 5]]


def test_views_share_memory_and_parameters_become_the_devices() -> None:
    layer = torch.nn.Linear(2, 2).to(HERE)
    layer.weight.data = torch.zeros(2, 2, device=HERE)
    layer.weight.data[1].fill_(3)
    assert isinstance(layer.weight, torch.nn.Parameter) and layer.weight.is_cuda
    assert layer.weight.tolist() == [[0, 0], [3, 3]]
    storage = layer.weight.untyped_storage()
    assert storage.device == torch.device(HERE)
    storage.resize_(0)
    with breaks(UsedTooLate):
        layer.weight + 1


def test_host_and_device_dont_mix_but_for_single_numbers() -> None:
    with pytest.raises(RuntimeError, match="same device"):
        numbers() + torch.ones(4)
    with pytest.raises(ValueError, match="cpu tensor"):
        _double[(1,)](torch.ones(4), numbers(), block=4)
    assert (numbers(2) + torch.tensor(1.0)).tolist() == [1, 2]


def test_kernels_run_on_the_devices_memory() -> None:
    x, out = numbers(), torch.zeros(4, device=HERE)
    _double[(1,)](x, out, block=4)
    assert out.tolist() == [0, 2, 4, 6]


def test_memory_is_counted_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.cuda.memory_allocated()
    x = torch.zeros(1024, device=HERE)
    assert torch.cuda.memory_allocated() == before + 4096
    monkeypatch.setattr(memory, "CAPACITY_BYTES", before + 5000)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1024, device=HERE)
    x.untyped_storage().resize_(0)
    assert torch.cuda.mem_get_info()[0] == 5000
    del x
    assert torch.cuda.memory_allocated() == before


def test_threads_that_begin_meanwhile_have_the_device_too() -> None:
    found = []

    def work() -> None:
        found.append((torch.zeros(2, device=HERE) + torch.tensor([1, 2], device=HERE)).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[1, 2]]


# ------------------------------------------------------------ waiting


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: bool(x[0]),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x[torch.tensor([1])],
        lambda x: x.equal(x),
        lambda x: torch.nn.functional.one_hot(x.long()),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.zeros(4).copy_(x, non_blocking=True),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: x.copy_(torch.zeros(4), non_blocking=True),
        lambda x: torch.tensor([1.0], device=HERE),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.cuda.current_stream().synchronize(),
    ],
)
@pytest.mark.parametrize("infers", [False, True])
def test_whatever_waits_is_refused_where_nobody_may(wait: object, infers: bool) -> None:
    with torch.inference_mode(infers):
        x = numbers()
        wait(x)  # type: ignore[operator]
        with breaks(Waited), no_waiting():
            wait(x)  # type: ignore[operator]


def test_what_does_not_wait_may_be_done() -> None:
    x, host = numbers(), pinned()
    total = int(x.sum())
    with no_waiting():
        torch.empty_like(x).copy_(host, non_blocking=True)
        host = torch.ones(4).pin_memory().to(HERE, non_blocking=True)
        y = x.clone()
        y[y > 1] = 0
        y[host.long()] += 1
        x.to("cpu", non_blocking=True)
        torch.nn.functional.one_hot(x.long(), 4)
        x.repeat_interleave(2)
        x.repeat_interleave(x.long(), output_size=total)
        event = torch.cuda.Event()
        event.record()
        torch.cuda.Stream().wait_event(event)


# ------------------------------------------------------------ copies that nobody waits for


def test_a_copy_to_the_host_is_there_once_it_was_waited_for() -> None:
    x, host = numbers(), pinned()
    host.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    x.fill_(9)
    assert host.tolist() != [0, 1, 2, 3]
    with breaks(UsedTooEarly):
        host + 1
    event.synchronize()
    assert host.tolist() == [0, 1, 2, 3]


def test_waiting_for_another_stream_or_an_earlier_moment_brings_nothing() -> None:
    event = torch.cuda.Event()
    event.record()
    host = numbers().to("cpu", non_blocking=True)
    event.synchronize()
    torch.cuda.Stream().synchronize()
    assert host.tolist() != [0, 1, 2, 3]
    torch.cuda.current_stream().synchronize()
    assert host.tolist() == [0, 1, 2, 3]


def test_a_source_must_stay_as_it_is_until_it_has_been_copied() -> None:
    x, host = numbers(), pinned()
    x.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    host.fill_(1)
    x.copy_(host, non_blocking=True)
    host.fill_(2)
    with breaks(ChangedTooEarly):
        torch.cuda.synchronize()


def test_copies_of_one_stream_to_the_host_and_back_need_no_waiting() -> None:
    x, host, other = numbers(), pinned(), torch.zeros(4, device=HERE)
    for count in range(3):
        host.copy_(x + count, non_blocking=True)
        other.copy_(host, non_blocking=True)
    torch.cuda.synchronize()
    assert host.tolist() == other.tolist() == [2, 3, 4, 5]


def test_another_stream_must_not_read_what_is_being_filled() -> None:
    x, host = numbers(), pinned()
    host.copy_(x, non_blocking=True)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), breaks(UsedTooEarly):
        host.to(HERE, non_blocking=True)


def test_a_source_may_be_given_back() -> None:
    assert torch.ones(2).pin_memory().to(HERE, non_blocking=True).tolist() == [1, 1]


# ------------------------------------------------------------ graphs


def recorded(work: object) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            out = work()  # type: ignore[operator]
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, out


def test_a_graph_does_the_same_again_and_nothing_before() -> None:
    x, count, factor = numbers(), torch.zeros(4, device=HERE), 2

    def work() -> Tensor:
        count.add_(1)
        doubled = torch.empty_like(x)
        _double[(1,)](x, doubled, block=4)
        return (doubled.view(2, 2) + factor).flatten()

    graph, out = recorded(work)
    assert count.tolist() == [0] * 4
    assert out.isnan().all()
    factor = 5  # a graph has what it was
    x.fill_(7)
    for times in (1, 2):
        graph.replay()
        assert count.tolist() == [times] * 4
        assert out.tolist() == [16] * 4


def test_a_graph_needs_the_memory_that_it_was_recorded_with() -> None:
    x = numbers()
    graph, _ = recorded(lambda: x + 1)
    x.untyped_storage().resize_(1 << 20)
    with breaks(GraphOutdated):
        graph.replay()
    given = [numbers()]
    graph, _ = recorded(lambda: given[0] + 1)
    given.clear()
    with breaks(GraphOutdated):
        graph.replay()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[0].item(),
        lambda x: x.copy_(torch.ones(4), non_blocking=True),
        lambda x: torch.ones(4).pin_memory(),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.zeros(4, pin_memory=True).copy_(x, non_blocking=True),
    ],
)
def test_what_cant_be_recorded_is_refused(call: object) -> None:
    x = numbers()
    with breaks(NotCapturable):
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin()
            try:
                call(x)  # type: ignore[operator]
            finally:
                with pytest.raises(RuntimeError, match="during capture"):
                    graph.capture_end()


def test_the_default_stream_cant_be_recorded() -> None:
    with breaks(NotCapturable):
        torch.cuda.CUDAGraph().capture_begin()


def test_a_copy_from_page_locked_memory_is_made_again() -> None:
    x, host = numbers(), pinned()
    graph, _ = recorded(lambda: x.copy_(host, non_blocking=True))
    host.fill_(3)
    graph.replay()
    assert x.tolist() == [3] * 4


# ------------------------------------------------------------ streams


def test_streams_use_each_others_work_in_order_only() -> None:
    x, other = numbers(), torch.cuda.Stream()
    with breaks(OutOfOrder), torch.cuda.stream(other):
        x + 1
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        y = x + 1
    with breaks(OutOfOrder):
        y + 1
    with breaks(OutOfOrder):
        x.fill_(0)  # the other stream still reads it
    assert (x + 1).tolist() == [1, 2, 3, 4]
    torch.cuda.current_stream().wait_event(other.record_event())
    assert (x.fill_(0) + y).tolist() == [1, 2, 3, 4]


def test_what_the_host_has_waited_for_is_in_order() -> None:
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        y = numbers()
    other.synchronize()
    assert (y + 1).tolist() == [1, 2, 3, 4]


def test_a_graph_waits_for_what_it_uses_too() -> None:
    x = numbers()
    graph, _ = recorded(lambda: x + 1)
    with breaks(OutOfOrder), torch.cuda.stream(torch.cuda.Stream()):
        graph.replay()


# ------------------------------------------------------------ the end


def test_a_broken_rule_that_somebody_caught_is_raised_at_the_end() -> None:
    with breaks(Waited), installed():
        try:
            with no_waiting():
                numbers().cpu()
        except RuntimeError:
            pass
