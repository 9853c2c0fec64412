"""/v1/files: what callers upload, and what batches make."""
