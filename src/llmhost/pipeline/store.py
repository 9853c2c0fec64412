"""Stage 8: keep the answer for those who ask again. The counterpart of `cached`, and as empty for now."""

from llmhost.pipeline.context import RequestContext


class Store:
    def __call__(self, context: RequestContext) -> None:
        return None
