"""A GPU that isn't there: tensors say that they are on `cuda:0`, and lie in host memory.

So all that the torch engine does on a GPU runs where there is none: streams and events, page-locked memory, graphs,
weights read by many threads, sleep. Numbers are computed by torch's CPU kernels and Triton's interpreter, at once and
in the order of the calls. What would go wrong on a real GPU, mostly in silence, raises here, each by its own error in
`rules`: waiting where nobody may (`no_waiting`), memory used before a copy is done with it, what a graph can't record,
a graph that outlived what it reads, and work of two streams that nothing puts in order.

What it keeps of CUDA is said in each module. It does not keep time, nor memory that is given away while another stream
still uses it, and it knows one device. Where CUDA sometimes waits, it always does.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton looks when it is imported

from tests.gpu_double.installing import installed
from tests.gpu_double.rules import breaks, no_waiting, swallows

__all__ = ["breaks", "installed", "no_waiting", "swallows"]
