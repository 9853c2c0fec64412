"""The tables of the ledger: entries, prices and sums, as steps that are never edited."""

from llmhost.storage.schema import Schema

_SUMS = (
    """CREATE TABLE sums (
        org TEXT NOT NULL,
        quarter INTEGER NOT NULL,
        team TEXT NOT NULL,
        key_id TEXT NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        fresh_input_tokens INTEGER NOT NULL,
        cached_input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        embedding_tokens INTEGER NOT NULL,
        engine_ns INTEGER NOT NULL,
        amount_nano INTEGER NOT NULL,
        PRIMARY KEY (org, quarter, team, key_id, model)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX sums_by_key ON sums (key_id, quarter)",
    """CREATE TABLE run_sums (
        org TEXT NOT NULL,
        team TEXT NOT NULL,
        key_id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        quarter INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        fresh_input_tokens INTEGER NOT NULL,
        cached_input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL,
        embedding_tokens INTEGER NOT NULL,
        engine_ns INTEGER NOT NULL,
        amount_nano INTEGER NOT NULL,
        PRIMARY KEY (org, team, key_id, run_id, quarter)
    ) STRICT, WITHOUT ROWID""",
    # Entries of an older version had no runs.
    """INSERT INTO sums SELECT org, utc_ns / 900000000000, ifnull(team, ''), ifnull(key_id, ''), model,
        sum(kind = 'request'), sum(fresh_input_tokens), sum(cached_input_tokens), sum(output_tokens), 0, 0,
        sum(engine_ns), sum(amount_nano)
    FROM entries GROUP BY 1, 2, 3, 4, 5""",
)

SCHEMA = Schema(
    "cost",
    {
        "entries_and_prices": (
            """CREATE TABLE prices (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                version TEXT NOT NULL UNIQUE,
                model TEXT NOT NULL,
                input_nano INTEGER NOT NULL CHECK (input_nano >= 0),
                cached_input_nano INTEGER NOT NULL CHECK (cached_input_nano >= 0),
                output_nano INTEGER NOT NULL CHECK (output_nano >= 0),
                effective_from_ns INTEGER NOT NULL
            ) STRICT""",
            "CREATE INDEX prices_by_model ON prices (model, seq)",
            """CREATE TABLE entries (
                seq INTEGER PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                kind TEXT NOT NULL,
                request_id TEXT NOT NULL,
                key_id TEXT,
                org TEXT NOT NULL,
                team TEXT,
                model TEXT NOT NULL,
                outcome TEXT NOT NULL,
                code TEXT,
                fresh_input_tokens INTEGER NOT NULL CHECK (fresh_input_tokens >= 0),
                cached_input_tokens INTEGER NOT NULL CHECK (cached_input_tokens >= 0),
                output_tokens INTEGER NOT NULL CHECK (output_tokens >= 0),
                engine_ns INTEGER NOT NULL CHECK (engine_ns >= 0),
                price_version TEXT,
                amount_nano INTEGER NOT NULL,
                prev_hash BLOB NOT NULL,
                hash BLOB NOT NULL,
                UNIQUE (request_id, kind)
            ) STRICT""",
            "CREATE INDEX entries_by_time ON entries (utc_ns)",
            *(
                f"CREATE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} are only ever added'); END"
                for table in ("entries", "prices")
                for verb in ("UPDATE", "DELETE")
            ),
        ),
        "accounts_runs_and_sums": (
            "ALTER TABLE entries ADD COLUMN run_id TEXT",
            "ALTER TABLE entries ADD COLUMN adapter TEXT",
            "ALTER TABLE entries ADD COLUMN reasoning_tokens INTEGER CHECK (reasoning_tokens > 0)",
            "ALTER TABLE entries ADD COLUMN embedding_tokens INTEGER CHECK (embedding_tokens > 0)",
            "ALTER TABLE entries ADD COLUMN load_ns INTEGER CHECK (load_ns > 0)",
            "ALTER TABLE entries ADD COLUMN safety_units INTEGER CHECK (safety_units > 0)",
            "ALTER TABLE entries ADD COLUMN debit TEXT",
            "ALTER TABLE entries ADD COLUMN credit TEXT",
            "ALTER TABLE entries ADD COLUMN cost_digest TEXT",
            "CREATE INDEX entries_by_run ON entries (run_id, utc_ns) WHERE run_id IS NOT NULL",
            *_SUMS,
        ),
        "answers_from_the_cache": ("ALTER TABLE entries ADD COLUMN from_cache TEXT",),
        "tasks_of_requests": ("ALTER TABLE entries ADD COLUMN task TEXT",),
    },
)
