"""Ollama's API for the same models: the same door, stages, keys and ledger as OpenAI's routes."""
