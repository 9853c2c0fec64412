"""The HTTP surface: the only importer of litestar. It parses, calls the pipeline, and frames; it decides nothing."""
