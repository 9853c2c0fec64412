"""Texts that wait for humans: what reviewers do with them, and what callers hear of theirs."""
