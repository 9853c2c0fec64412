"""Every key of models.toml. Frozen; units end the names; a default is what a newcomer would want.

Unknown keys are refused by `config.load`, which also names the nearest key. The attribute docstrings are the
documentation of each key: `docs/config.md` and `models.toml` are checked against them.
"""

import msgspec

from llmhost.config.schema.cache import CacheSettings
from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import BillingSettings, CostSettings
from llmhost.config.schema.safety import AuditSettings, ReviewSettings, SafetySettings
from llmhost.config.schema.section import Section
from llmhost.config.schema.server import DeviceSettings, PluginSettings, ServerSettings
from llmhost.config.schema.state import (
    BatchSettings,
    FileSettings,
    IdempotencySettings,
    StateSettings,
)


class Settings(Section, frozen=True):
    """The whole file, after environment and flags."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    state: StateSettings = StateSettings()
    files: FileSettings = FileSettings()
    batches: BatchSettings = BatchSettings()
    cache: CacheSettings = CacheSettings()
    safety: SafetySettings = SafetySettings()
    reviews: ReviewSettings = ReviewSettings()
    audit: AuditSettings = AuditSettings()
    plugins: PluginSettings = PluginSettings()
    devices: DeviceSettings = DeviceSettings()
    costs: CostSettings = CostSettings()
    billing: BillingSettings = BillingSettings()
    models: dict[str, ModelSpec] = msgspec.field(default_factory=dict)
