"""A request's story, from authentication to the ledger, one stage after another."""
