"""Times on a device, and what the device can do at best. On the CPU the same calls rehearse the real run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_WARM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Medians over random data."""

    copy_bytes_per_s: float
    """Within the device's memory; bytes read and bytes written count."""
    read_bytes_per_s: float
    flops_per_s: float
    """Of one large bf16 matrix product."""
    upload_bytes_per_s: float
    """From page-locked host memory."""

    @property
    def bytes_per_s(self) -> float:
        """The faster of reading and copying: what floors are made of."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_times_s(call: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Each round between two events on the device's own time line."""
    for _ in range(_WARM):
        call()
    wait(device)
    if device.type != "cuda":
        return [_on_clock(call) for _ in range(rounds)]
    marks = []
    for _ in range(rounds):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        call()
        ended.record()
        marks.append((began, ended))
    wait(device)
    return [began.elapsed_time(ended) / 1e3 for began, ended in marks]


def back_to_back_s(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Mean of rounds that are given to the device without waiting for any: what the host takes is hidden as far as
    it takes less."""
    call()
    wait(device)
    began = time.perf_counter()
    for _ in range(rounds):
        call()
    wait(device)
    return (time.perf_counter() - began) / rounds


def measure_speeds(device: torch.device) -> Speeds:
    """Takes 12 GB of a GPU for a moment."""
    is_gpu = device.type == "cuda"
    count, side = (2**31, 8192) if is_gpu else (2**22, 256)
    source = torch.empty(count, dtype=torch.bfloat16, device=device).normal_()
    target = torch.empty_like(source)
    copy_s = _median(lambda: target.copy_(source), device)
    read_s = _median(lambda: _read(source), device)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    matmul_s = _median(lambda: left @ right, device)
    host = torch.empty(count // 2, dtype=torch.bfloat16, pin_memory=is_gpu).fill_(0.7)
    upload_s = _median(lambda: source[: count // 2].copy_(host, non_blocking=True), device)
    return Speeds(
        copy_bytes_per_s=2 * source.nbytes / copy_s,
        read_bytes_per_s=source.nbytes / read_s,
        flops_per_s=2 * side**3 / matmul_s,
        upload_bytes_per_s=host.nbytes / upload_s,
    )


def _read(source: Tensor) -> Tensor:
    return source.view(torch.int32).view(-1, 2**12).amax(dim=1)


def _median(call: Callable[[], object], device: torch.device) -> float:
    return statistics.median(device_times_s(call, device, 10))


def _on_clock(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
