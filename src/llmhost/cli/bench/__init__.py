"""`llmhost bench`: a load generator for any OpenAI endpoint, and a bench of the engine without one."""

from llmhost.cli.bench.command import add_to

__all__ = ["add_to"]
