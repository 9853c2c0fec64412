"""Half price between midnight and six, UTC. The quote holds for the whole answer, however late it ends."""

from datetime import datetime

from llmhost import Price, hookimpl

OFF_PEAK = range(6)


@hookimpl
def quote_price(price: Price, now: datetime) -> Price | None:
    if now.hour not in OFF_PEAK:
        return None  # no opinion: the next plugin, then the list price
    return price.times(1, 2)
