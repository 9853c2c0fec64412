"""Finding devices by name."""

from llmhost.config.schema.server import DeviceSettings
from llmhost.gpu.devices import Devices
from llmhost.gpu.lane import DeviceLane, FreeLane
from llmhost.observe.clock import SystemClock


def test_the_cpu_is_there_with_the_configured_ceiling() -> None:
    devices = Devices(DeviceSettings(cpu_memory="2GiB"), SystemClock())
    memory = devices.memory("cpu:0")
    assert memory is not None
    assert memory.capacity_bytes == 2 * 2**30


def test_without_a_ceiling_the_cpu_offers_a_part_of_what_is_free() -> None:
    memory = Devices(DeviceSettings(), SystemClock()).memory("cpu:0")
    assert memory is not None
    assert memory.capacity_bytes > 0


def test_a_gpu_offers_its_fraction_and_the_first_word_counts() -> None:
    devices = Devices(DeviceSettings(gpu_memory_fraction=0.5), SystemClock())
    devices.add_gpu("cuda:0", 1000)
    first = devices.memory("cuda:0")
    devices.add_gpu("cuda:0", 4000)
    assert first is not None
    assert first.capacity_bytes == 500
    assert devices.memory("cuda:0") is first
    assert [memory.device for memory in devices.all()] == ["cpu:0", "cuda:0"]


def test_a_device_has_one_lane_and_no_device_a_free_one() -> None:
    devices = Devices(DeviceSettings(cpu_memory="1GiB"), SystemClock())
    assert isinstance(devices.lane("cpu:0"), DeviceLane)
    assert devices.lane("cpu:0") is devices.lane("cpu:0")
    assert isinstance(devices.lane("none"), FreeLane)
    assert devices.memory("none") is None
