"""All accounts of the ledger and what they hold: every amount is taken from one and given to another.

What requests cost the operator moves in the same way, beside their amounts: from `machine` to `costs`, or to `loss`
where nobody was answered.
"""

from collections import defaultdict
from dataclasses import dataclass

from llmhost.core.output import Outcome
from llmhost.cost.entries import COSTS, LOSS, MACHINE, REVENUE
from llmhost.cost.rows import NOBODY
from llmhost.storage.connect import Connection

_MOVED = f"""
    SELECT ifnull(debit, 'org:' || org), ifnull(credit, '{REVENUE}'), sum(amount_nano)
    FROM entries GROUP BY 1, 2
"""
_COST = f"""
    SELECT CASE WHEN e.outcome IN ('{Outcome.FAILED}', '{Outcome.REFUSED}') OR c.org = '{NOBODY}'
            THEN '{LOSS}' ELSE '{COSTS}' END,
        '{MACHINE}',
        sum(gpu_compute_nano + infrastructure_nano + model_loading_nano + safety_moderation_nano)
    FROM request_costs c LEFT JOIN entries e ON e.request_id = c.request_id AND e.kind = c.kind GROUP BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Nano-dollars. `balance_nano` is debits less credits: of all accounts together 0."""

    account: str
    debit_nano: int
    credit_nano: int

    @property
    def balance_nano(self) -> int:
        return self.debit_nano - self.credit_nano


def accounts(connection: Connection) -> list[Account]:
    """Each account that anything was ever booked to, by name. Reads all entries, at one moment."""
    taken: defaultdict[str, int] = defaultdict(int)
    given: defaultdict[str, int] = defaultdict(int)
    for query in (_MOVED, _COST):
        for debit, credit, nano in connection.execute(query):
            taken[debit] += nano
            given[credit] += nano
    return [
        Account(account=name, debit_nano=taken[name], credit_nano=given[name])
        for name in sorted(taken.keys() | given.keys())
    ]
