"""Triton's interpreter with a NumPy that has become stricter, and in less time. Import it before kernels are run."""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_with_index(tensor: Any, scope: Any) -> None:
    """Scalars are arrays of one number there, which NumPy 2.4 no longer takes for the bound of a loop."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


_patch_language = interpreter._patch_lang
_patched: set[tuple[str, ...]] = set()


def _patch_once(function: Any) -> Any:
    """The language stays patched: searching it at every launch and call of a function takes as long as computing."""
    seen = function.__globals__.values()
    names = tuple(sorted({one.__name__ for one in seen if one is tl or one is tl.core}))
    if names not in _patched:
        _patched.add(names)
        _patch_language(function)
    return interpreter._LangPatchScope()  # of no changes, for the caller to undo


if interpreter._patch_lang_tensor.__name__ != _patch_with_index.__name__:
    interpreter._patch_lang_tensor = _patch_with_index
    interpreter._patch_lang = _patch_once
