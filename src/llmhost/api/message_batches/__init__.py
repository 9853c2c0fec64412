"""Anthropic's batches of messages."""
