"""The torch runner: transformers checkpoints over a paged KV cache.

transformers gives configs, weights and modelling code, entered through its attention interface under our own
name. Ours are the step's layout, the KV cache, attention over block tables, and the sampler. `footprint` says
what a checkpoint needs without importing torch; `load` reads the weights.
"""
