"""The stages of one request, in the order that they come in."""

from dataclasses import dataclass

from llmhost.pipeline.authenticate import Authenticate
from llmhost.pipeline.bill import Bill
from llmhost.pipeline.cached import Cached
from llmhost.pipeline.execute import Execute
from llmhost.pipeline.limit import Limit
from llmhost.pipeline.log import Log
from llmhost.pipeline.resolve import Resolve
from llmhost.pipeline.route import Route
from llmhost.pipeline.screen import ScreenStage
from llmhost.pipeline.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The ten stages, wired by the host."""

    authenticate: Authenticate
    resolve: Resolve
    limit: Limit
    screen: ScreenStage
    cached: Cached
    route: Route
    execute: Execute
    store: Store
    bill: Bill
    log: Log
