"""Batches: many requests in one file, run one by one through the pipeline as their caller."""
