"""The durable side of a node: keys and money. A stopped node has it too."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from llmhost.core.ports import Clock
from llmhost.core.world import World
from llmhost.cost import ledger as cost
from llmhost.cost import prices
from llmhost.cost import rows as true_cost
from llmhost.cost.costbook import CostBook
from llmhost.cost.ledger import Ledger
from llmhost.cost.prices import PriceBook
from llmhost.cost.reports import Reports
from llmhost.cost.rerate import Rerater
from llmhost.cost.statement import Statements
from llmhost.cost.under_way import Settlements
from llmhost.host.spending import SPENDING, booking, rerated
from llmhost.storage.journal import Journal
from llmhost.storage.node import DataDir
from llmhost.storage.reader import Reader
from llmhost.storage.writer import PACE_S, Writer
from llmhost.tenants import budget_rows
from llmhost.tenants import keys as tenants
from llmhost.tenants.budget_store import BudgetStore
from llmhost.tenants.keys import KeyStore

SCHEMAS = (tenants.SCHEMA, cost.SCHEMA, prices.SCHEMA, true_cost.SCHEMA, budget_rows.SCHEMA)
"""Of `money.db`, in the order in which they build on each other."""


@dataclass(frozen=True, slots=True)
class Books:
    """The durable side of a node: keys and money, which a stopped node has too."""

    keys: KeyStore
    ledger: Ledger
    costs: CostBook
    prices: PriceBook
    reports: Reports
    statements: Statements
    settlements: Settlements
    budgets: BudgetStore
    rerater: Rerater
    world: World
    """Told of every change of keys and prices."""


def open_books(data_dir: DataDir, clock: Clock, closing: AsyncExitStack) -> Books:
    """Open keys and ledger, and settle what a killed process left; `closing` closes them. Blocks."""
    path, node_id = data_dir.money_db, data_dir.node_id
    journal = Journal(data_dir.journal)
    closing.callback(journal.close)  # after the writer, whose last entries close slots
    writer = Writer(path, synchronous="FULL", migrations=SCHEMAS, pace_s=PACE_S)
    closing.callback(writer.close)
    reader = Reader(path)
    closing.callback(reader.close)
    ledger = Ledger(writer, reader, node_id=node_id, clock=clock)
    settlements = Settlements(ledger, journal)
    settlements.replay()
    budgets = BudgetStore(
        writer,
        reader,
        node_id=node_id,
        clock=clock,
        spending=SPENDING,
        book_credit=booking(node_id),
        is_settled=lambda: not settlements.unsettled,
    )
    world = World()
    price_book = PriceBook(writer, reader, node_id=node_id, clock=clock, world=world)
    reports = Reports(reader)
    return Books(
        KeyStore(writer, reader, pepper=data_dir.pepper, node_id=node_id, clock=clock, world=world),
        ledger,
        CostBook(writer, reader, node_id=node_id, clock=clock),
        price_book,
        reports,
        Statements(
            reports, price_book, secret=data_dir.statement_secret, node_id=node_id, clock=clock
        ),
        settlements,
        budgets,
        Rerater(
            writer,
            reader,
            node_id=node_id,
            on_applied=rerated(budgets.accounts),
            turn=budgets.turn,
        ),
        world,
    )
