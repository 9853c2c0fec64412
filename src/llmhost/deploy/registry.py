"""The model registry: which versions this node has known, and every state change with its reason.

models.toml declares and the registry records. A model gets a new version when its source, engine, files or precision
differ from the newest one that is recorded. Files that are not here, before a download or while a disk is away, say
nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.core.events import DeploymentChanged
from llmhost.core.ports import Clock
from llmhost.core.sequence import ModelRef
from llmhost.deploy.adapters import adapter_key
from llmhost.deploy.catalogue import ModelEntry, Served
from llmhost.deploy.sources import find_local, fingerprint
from llmhost.storage.connect import Connection
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer

SCHEMA = Schema(
    "registry",
    {
        "models_and_events": (
            """CREATE TABLE models (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                name TEXT NOT NULL,
                version INTEGER NOT NULL,
                engine TEXT NOT NULL,
                source TEXT NOT NULL,
                fingerprint TEXT NOT NULL,
                origin TEXT NOT NULL,
                UNIQUE (name, version)
            ) STRICT""",
            """CREATE TABLE model_events (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                model TEXT NOT NULL,
                state TEXT NOT NULL,
                reason TEXT NOT NULL,
                took_ms INTEGER,
                bytes INTEGER
            ) STRICT""",
        ),
        "memory_of_loads": (
            "ALTER TABLE model_events ADD COLUMN predicted_bytes INTEGER",
            "ALTER TABLE model_events ADD COLUMN measured_bytes INTEGER",
        ),
    },
)

CHANGE_ANSWERS = ("dtype", "weights", "kv_dtype")
"""Options that decide in what precision the same files are computed."""

_NEWEST = """
    SELECT version, engine, source, fingerprint, utc_ns FROM models WHERE name = ? ORDER BY version DESC LIMIT 1
"""
_INSERT_MODEL = """
    INSERT INTO models (node_id, utc_ns, name, version, engine, source, fingerprint, origin)
    VALUES (?, ?, ?, ?, ?, ?, ?, 'file')
"""
_SET_MARK = "UPDATE models SET fingerprint = ? WHERE name = ? AND version = ?"
_INSERT_EVENT = """
    INSERT INTO model_events
        (node_id, utc_ns, model, state, reason, took_ms, bytes, predicted_bytes, measured_bytes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Registry:
    """Owns registry.db's rows about models."""

    def __init__(self, writer: Writer, *, node_id: str, clock: Clock) -> None:
        self._writer = writer
        self._node_id = node_id
        self._clock = clock

    def declare(self, specs: Mapping[str, ModelSpec], models_dir: Path) -> list[ModelEntry]:
        """Give each declared model its version. Blocks: reads small files and commits once."""
        marks = {name: _mark(spec, models_dir) for name, spec in specs.items()}
        now_ns = self._clock.utc_ns()

        def write(connection: Connection) -> list[ModelEntry]:
            return [
                self._entry(connection, name, spec, marks[name], now_ns)
                for name, spec in specs.items()
            ]

        return self._writer.submit(write).result()

    def record(self, event: DeploymentChanged) -> None:
        """Persist a state change; never waited for."""
        row = (
            self._node_id,
            event.utc_ns,
            event.model,
            event.state,
            event.reason,
            None if event.took_s is None else round(event.took_s * 1000),
            event.bytes,
            event.predicted_bytes,
            event.measured_bytes,
        )
        self._writer.submit(lambda connection: connection.execute(_INSERT_EVENT, row).rowcount)

    def _entry(
        self, connection: Connection, name: str, spec: ModelSpec, mark: str, now_ns: int
    ) -> ModelEntry:
        newest = connection.execute(_NEWEST, (name,)).fetchone()
        if newest is not None and newest[1:3] == (spec.engine, spec.source):
            version, known = newest[0], newest[3]
            if not known and mark:  # first seen now, after a download
                connection.execute(_SET_MARK, (mark, name, version))
            if known == mark or not (known and mark):
                return ModelEntry(ModelRef(name, version), spec, newest[4] // 10**9)
        version = 1 if newest is None else newest[0] + 1
        row = (self._node_id, now_ns, name, version, spec.engine, spec.source, mark)
        connection.execute(_INSERT_MODEL, row)
        return ModelEntry(ModelRef(name, version), spec, now_ns // 10**9)


def _mark(spec: ModelSpec, models_dir: Path) -> str:
    """Tells other files apart; empty while there are none, as before a first download."""
    try:
        folder = find_local(spec.source, models_dir) if spec.engine != "fake" else None
    except ModelUnavailable:
        return ""
    return "" if folder is None else fingerprint(folder) + _computed_with(spec)


def mark_of(served: Served, models_dir: Path) -> str:
    """The same for a model, or for an adapter alone. Blocks."""
    if served.adapter is None:
        return _mark(served.entry.spec, models_dir)
    try:
        folder = find_local(served.source, models_dir)
    except ModelUnavailable:
        folder = None
    return adapter_key(served.adapter, "" if folder is None else fingerprint(folder))


def _computed_with(spec: ModelSpec) -> str:
    """What of a model's options changes its answers; empty for what computes them as the files say."""
    asked = {name: spec.options.get(name, "auto") for name in CHANGE_ANSWERS}
    return "".join(f" {name}={value}" for name, value in asked.items() if value != "auto")
