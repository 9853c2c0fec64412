"""The tables of organisations, teams and keys.

Settings are changed in place; that a key ended, and each of its secrets, is a row of its own.
"""

from llmhost.storage.schema import Schema

SCHEMA = Schema(
    "tenants",
    {
        "orgs_and_keys": (
            """CREATE TABLE orgs (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                name TEXT NOT NULL UNIQUE
            ) STRICT""",
            """CREATE TABLE keys (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                digest BLOB NOT NULL UNIQUE,
                org TEXT NOT NULL REFERENCES orgs(name),
                team TEXT,
                name TEXT,
                requests_per_minute INTEGER,
                models TEXT, -- a JSON list; NULL allows all
                expires_ns INTEGER
            ) STRICT""",
            """CREATE TABLE revocations (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                key_id TEXT NOT NULL UNIQUE REFERENCES keys(id)
            ) STRICT""",
        ),
        "teams_roles_and_secrets": (
            "ALTER TABLE orgs ADD COLUMN requests_per_minute INTEGER",
            "ALTER TABLE orgs ADD COLUMN input_tokens_per_minute INTEGER",
            "ALTER TABLE orgs ADD COLUMN output_tokens_per_minute INTEGER",
            "ALTER TABLE orgs ADD COLUMN max_concurrency INTEGER",
            "ALTER TABLE orgs ADD COLUMN disabled_ns INTEGER",
            "ALTER TABLE keys ADD COLUMN role TEXT NOT NULL DEFAULT 'member'",
            "ALTER TABLE keys ADD COLUMN input_tokens_per_minute INTEGER",
            "ALTER TABLE keys ADD COLUMN output_tokens_per_minute INTEGER",
            "ALTER TABLE keys ADD COLUMN max_concurrency INTEGER",
            "ALTER TABLE keys ADD COLUMN disabled_ns INTEGER",
            """CREATE TABLE teams (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                org TEXT NOT NULL REFERENCES orgs(name),
                name TEXT NOT NULL,
                requests_per_minute INTEGER,
                input_tokens_per_minute INTEGER,
                output_tokens_per_minute INTEGER,
                max_concurrency INTEGER,
                archived_ns INTEGER,
                UNIQUE (org, name)
            ) STRICT""",
            """INSERT INTO teams (node_id, utc_ns, org, name)
                SELECT node_id, min(utc_ns), org, team FROM keys WHERE team IS NOT NULL
                GROUP BY org, team ORDER BY min(seq)""",
            """CREATE TABLE secrets (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                digest BLOB NOT NULL UNIQUE,
                key_id TEXT NOT NULL REFERENCES keys(id),
                ends_ns INTEGER -- set by the rotation that replaced it
            ) STRICT""",
            """INSERT INTO secrets (node_id, utc_ns, digest, key_id)
                SELECT node_id, utc_ns, digest, id FROM keys ORDER BY seq""",
            "CREATE INDEX secrets_by_key ON secrets (key_id)",
        ),
    },
)
