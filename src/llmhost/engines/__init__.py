"""Engines: what runs a model, and the small model that ships with llmhost."""
