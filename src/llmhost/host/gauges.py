"""What a scrape of the metrics reads of a running node."""

from collections.abc import Iterable, Mapping

from llmhost.core.ports import EngineLoad
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.conservation import Reading
from llmhost.cost.ledger import Ledger
from llmhost.deploy.manager import Deployments
from llmhost.gpu.devices import Devices
from llmhost.observe.metrics import GaugeSource
from llmhost.safety.audit import AuditLog
from llmhost.storage.analytics import Analytics


class Gauges(GaugeSource):
    """Of deployments, devices, costs and the ledger."""

    def __init__(
        self,
        deployments: Deployments,
        devices: Devices,
        analytics: Analytics,
        costs: TrueCosts,
        ledger: Ledger,
        audit: AuditLog,
    ) -> None:
        self._audit = audit
        self._ledger = ledger
        self._deployments = deployments
        self._devices = devices
        self._analytics = analytics
        self._costs = costs

    def analytics_dropped(self) -> int:
        return self._analytics.dropped

    def ledger_drift(self) -> int:
        return self._ledger.drifted

    def audit_waiting(self) -> int:
        return self._audit.waiting

    def engine_loads(self) -> Iterable[tuple[str, EngineLoad]]:
        return self._deployments.loads()

    def deployment_states(self) -> Iterable[tuple[str, str]]:
        return [(str(d.entry.ref), d.state.value) for d in self._deployments.all()]

    def adapters(self) -> Iterable[tuple[str, int, int]]:
        for deployment in self._deployments.all():
            rows = self._deployments.loaded_adapters(deployment.entry)
            yield str(deployment.entry.ref), len(rows), sum(row.users for row in rows)

    def device_costs(self) -> Iterable[tuple[str, Mapping[str, int], int]]:
        for device in self._devices.lanes():
            reading = self._costs.read(device)
            checked = self._costs.readings.get(device)
            yield device, _pools(reading), 0 if checked is None else checked.error_nano

    def infrastructure_costs(self) -> Mapping[str, int]:
        pools = self._costs.infrastructure
        return {"host": pools.host.meter.nano, "egress": pools.egress.meter.nano}

    def device_figures(self) -> Iterable[tuple[str, int, int, int, int]]:
        return self._devices.figures()


def _pools(reading: Reading) -> dict[str, int]:
    return {
        "callers": reading.callers_nano,
        "operator": reading.operator_nano,
        "model_loading": reading.load_nano,
        "idle": reading.idle_nano,
    }
