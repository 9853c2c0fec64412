"""`python -m tests.gpu_double serve ...`: the program on a machine with a GPU that isn't there, to try things by hand.

Kernels are interpreted, so a token takes seconds, and only the smallest models make sense.
"""

import sys

import tests.unit.kernels.interpreting  # noqa: F401
from tests.gpu_double import installed

from llmhost.__main__ import main

if __name__ == "__main__":
    with installed():
        sys.exit(main())
