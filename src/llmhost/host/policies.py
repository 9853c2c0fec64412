"""The policies of a host's organisations, running or stopped."""

from llmhost.api.policies import PolicyAdmin
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.ports import Clock
from llmhost.core.world import World
from llmhost.safety.audit import AuditLog
from llmhost.safety.defaults import NodePolicy
from llmhost.safety.policy_store import PolicyStore
from llmhost.safety.rules import Rules
from llmhost.storage.node import DataDir
from llmhost.tenants.teams import Directory


def open_policies(
    data_dir: DataDir,
    settings: SafetySettings,
    audit: AuditLog,
    clock: Clock,
    world: World | None = None,
) -> PolicyStore:
    """Load all of them from the audit log's file. Blocks."""
    default = NodePolicy(settings)
    return PolicyStore(audit.trail, default, node_id=data_dir.node_id, clock=clock, world=world)


def offline_policies(
    data_dir: DataDir, audit: AuditLog, directory: Directory, clock: Clock
) -> PolicyAdmin:
    """Of a node that isn't running: what is put in force there holds from its next start."""
    store = open_policies(data_dir, SafetySettings(), audit, clock)
    store.prepare_with(lambda policy: Rules(SafetySettings(), policy.words))
    return PolicyAdmin(store, audit, directory)
