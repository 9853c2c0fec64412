"""Runners: the adapters between the scheduler's steps and what runs a model.

`torch` runs transformers checkpoints over a paged KV cache of our own; `fake` is a deterministic stand-in.
Nothing here knows of requests, tenants or money, and nothing is imported until a model asks for it.
"""
