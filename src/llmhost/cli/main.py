"""The program `llmhost` with all its commands."""

from llmhost.cli import (
    adapters,
    audit,
    backup,
    batches,
    bench,
    budgets,
    cache,
    chat,
    config,
    doctor,
    entries,
    export_gguf,
    invoice,
    keys,
    ledger,
    models,
    orgs,
    plugins,
    prices,
    pull,
    reviews,
    safety,
    serve,
    usage,
)
from llmhost.cli.program import make_program

app = make_program(
    (
        *(
            serve,
            chat,
            models,
            pull,
            adapters,
            export_gguf,
            orgs,
            keys,
            budgets,
            prices,
            usage,
            ledger,
        ),
        *(invoice, entries, backup, batches, reviews, cache, safety, audit),
        *(bench, plugins, config, doctor),
    )
)
