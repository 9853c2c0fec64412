"""Imports of thousands of modules, without the search for garbage that they would set off again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def long_import() -> Iterator[None]:
    """What is imported within the block stays for ever, and so does what else is alive at its end: neither is searched
    for garbage, now or later.

    Searching takes an eighth of the time of importing torch and transformers, and afterwards would hold all threads up
    for as long as it takes to look through their modules.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
