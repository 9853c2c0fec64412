"""The composition root: the only place where things are wired."""

from llmhost.host.offline import OfflineAdmin, list_plugins
from llmhost.host.serving import serve
from llmhost.host.wiring import Host

__all__ = ["Host", "OfflineAdmin", "list_plugins", "serve"]
