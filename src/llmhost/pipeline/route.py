"""Stage 6: a replica of the resolved model. Loads it if need be; never changes the model."""

from llmhost.deploy.deployment import Deployment
from llmhost.deploy.replica import Replica
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.resolve import Resolve

LOADS = 5
"""How often a request has its model loaded again because an operator unloads it each time it is ready."""


async def ready_replica(deployment: Deployment) -> Replica:
    """The least busy one, of a model that is loaded if need be. Raises why it can't be."""
    for _ in range(LOADS):
        await deployment.ensure_ready()
        if deployment.replicas:
            break  # else an unload was queued behind the load, and came before its waiters
    return deployment.least_busy()


class Route:
    async def __call__(self, context: RequestContext) -> None:
        context.replica = await ready_replica(context.known_deployment)
        if context.adapter is not None:
            context.adapter_hold = await context.replica.hold_adapter(context.adapter)
        longest = context.replica.plan.max_sequence_length
        if longest < context.longest_tokens:  # less KV room than the headers promised
            context.longest_tokens = longest
            context.max_new_tokens = Resolve.room(context, longest)
