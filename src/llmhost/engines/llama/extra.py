"""Whether the extra `gguf` is installed, without importing any of it."""

from importlib.util import find_spec

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.library import HOW_TO_INSTALL


def require(*modules: str) -> None:
    """Raises ModelUnavailable that says how to install what is missing; by default what runs models."""
    if any(find_spec(module) is None for module in modules or ("llama_cpp",)):
        raise ModelUnavailable(HOW_TO_INSTALL)
