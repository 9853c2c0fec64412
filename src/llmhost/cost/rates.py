"""The node's configured costs as exact rates. Pure."""

from dataclasses import dataclass

from llmhost.config.schema.money import CostSettings
from llmhost.core.errors import ConfigError
from llmhost.core.meter import FREE, HOUR_NS, Rate
from llmhost.core.units import dollars_to_nano

GIB = 2**30
WATTS_PER_KILOWATT = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRates:
    """Nano-dollars per nanosecond of a device or of the host, and per byte sent."""

    gpu: Rate = FREE
    cpu: Rate = FREE
    host: Rate = FREE
    egress: Rate = FREE
    requests_per_load: int = 1_000

    @property
    def is_free(self) -> bool:
        return all(rate.is_free for rate in (self.gpu, self.cpu, self.host, self.egress))

    def of_device(self, device: str) -> Rate:
        """What is not a GPU computes on the CPU, stand-ins included."""
        return self.gpu if device.startswith("cuda") else self.cpu


def node_rates(settings: CostSettings) -> NodeRates:
    """Raises ConfigError, which names the key."""
    hourly = _nano(settings.gpu_per_hour, "gpu_per_hour") * WATTS_PER_KILOWATT
    hourly += settings.power_watts * _nano(settings.price_per_kwh, "price_per_kwh")
    return NodeRates(
        gpu=Rate(hourly, HOUR_NS * WATTS_PER_KILOWATT),
        cpu=Rate(_nano(settings.cpu_per_hour, "cpu_per_hour"), HOUR_NS),
        host=Rate(_nano(settings.host_per_hour, "host_per_hour"), HOUR_NS),
        egress=Rate(_nano(settings.egress_per_gib, "egress_per_gib"), GIB),
        requests_per_load=settings.requests_per_load,
    )


def _nano(text: str, key: str) -> int:
    try:
        nano = dollars_to_nano(text)
    except ValueError as error:
        raise ConfigError(f"costs.{key}: {error}.") from None
    if nano < 0:
        raise ConfigError(f"costs.{key}: {text!r} is negative; a cost is 0 or more.")
    return nano
