"""llmhost: one process that serves, meters and bills large language models."""

__version__ = "0.1.0"
