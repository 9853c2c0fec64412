"""Triton's interpreter with a NumPy that has become stricter. Import it before kernels that loop are run."""

from typing import Any

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_with_index(tensor: Any, scope: Any) -> None:
    """Scalars are arrays of one number there, which NumPy 2.4 no longer takes for the bound of a loop."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


if interpreter._patch_lang_tensor.__name__ != _patch_with_index.__name__:
    interpreter._patch_lang_tensor = _patch_with_index
