"""What a request costs its caller: prices, and the ledger that can't be rewritten unnoticed."""
