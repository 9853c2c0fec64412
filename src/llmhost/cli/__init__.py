"""The command line. Asks a running node over HTTP, or a stopped one through its data dir.

Modules here import the standard library and typer only; everything else is imported by the command that needs it,
so that help and shell completion answer at once.
"""
