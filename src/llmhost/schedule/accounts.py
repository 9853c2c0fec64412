"""Whose a step's time and cost are: the callers', the operator's, or a probe's. Pure.

Rejected guesses and what is computed again after a preemption bring nobody anything: they are the operator's.
"""

from llmhost.core.sequence import Purpose
from llmhost.core.step import Drawn, Row, confirmed_drafts
from llmhost.schedule.sequence import Sequence


class Accounts:
    """What device time was for, and what it cost; together all that the device did."""

    def __init__(self) -> None:
        self.operator_ns = 0
        """Device time that no caller pays for: recomputed prefill after preemptions, rejected guesses."""
        self.operator_nano = self.callers_nano = self.probe_nano = 0

    def pay(self, busy_ns: int, nano: int) -> None:
        """Book device time, and what it cost, to the operator."""
        self.operator_ns += busy_ns
        self.operator_nano += nano

    def charge(
        self, sequence: Sequence, row: Row, drawn: Drawn, share_ns: int, share_nano: int
    ) -> None:
        """Note what is computed of a sequence, and whose the time is."""
        fed, start = len(row.tokens), row.start
        rejected = row.drafts - confirmed_drafts(row, drawn)
        if row.drafts and sequence.spec.predicted:
            sequence.right_guesses += row.drafts - rejected
            sequence.wrong_guesses += rejected
        end = start + fed - rejected
        if sequence.blocks:  # else it was preempted while the step ran: nothing of it is kept
            sequence.computed = end
            sequence.fed -= rejected
        if row.wants_token and sequence.owed:
            sequence.owed -= 1
        operator_ns = share_ns if start < sequence.high_water else share_ns * rejected // fed
        if end > sequence.high_water:
            sequence.high_water = end
        operator_nano = 0
        if operator_ns:
            operator_nano = share_nano * operator_ns // share_ns
            self.pay(operator_ns, operator_nano)
        sequence.engine_ns += share_ns - operator_ns
        if share_nano:
            self._bill(sequence, row, share_nano - operator_nano)

    def _bill(self, sequence: Sequence, row: Row, nano: int) -> None:
        if row.purpose is Purpose.PROBE:
            self.probe_nano += nano
            return
        self.callers_nano += nano
        sequence.cost_nano += nano
        if row.start < row.prompt_tokens:
            sequence.input_cost_nano += nano
