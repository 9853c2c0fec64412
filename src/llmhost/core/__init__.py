"""The words that every other package shares. Standard library and msgspec only: no I/O, no clock, no torch."""
