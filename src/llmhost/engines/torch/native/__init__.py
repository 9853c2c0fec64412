"""Loops over the CPU's memory that torch has no fast call for, as machine code of this very CPU.

LLVM makes it when it is first wanted, in a fraction of a second and without a compiler on the machine (`llvmlite`).
"""
