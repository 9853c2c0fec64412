"""Triton kernels. Imported where there is a CUDA device, and by tests, which have Triton's interpreter run them.

Kernels here read and write tensors and know no model, no sequence and no step. All of them can be captured in a CUDA
graph: no function here waits for the device, or looks at a number that is there.
"""
