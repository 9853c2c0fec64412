"""Those who judge a text for one caller, the cheapest first: rules, then plugins, then a guard model.

They only find. A later one is not asked about what the policy blocks already.
"""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec

from llmhost.core.caller import Caller
from llmhost.core.errors import ContentRefused, LlmhostError
from llmhost.core.request import GenerationRequest
from llmhost.hooks.call import Answer, ask
from llmhost.hooks.now import NotNow, ask_each_now
from llmhost.hooks.registry import Plugins
from llmhost.safety.asking import ask_guard, no_answer, unavailable
from llmhost.safety.redact import redacted, redacted_request
from llmhost.safety.rules import PIECE_CHARS, Rules
from llmhost.safety.verdict import (
    Action,
    Case,
    Decision,
    Direction,
    Finding,
    Guard,
    Opinion,
    Policy,
    ReviewMode,
    Tier,
)
from llmhost.safety.window import Piece

INLINE_CHARS = 50_000
"""Longer prompts are rewritten in a thread: it takes some milliseconds."""
TEXTS_A_TURN = 64
"""So many texts are judged before other requests get their turn, however short they are."""


class Judged(msgspec.Struct):
    """What was found in one text, what was decided of it, and what a guard took for it."""

    decision: Decision
    findings: list[Finding]
    error: LlmhostError | None = None
    """A plugin's own words for its refusal, or those for a guard without an answer."""
    opinion: Opinion | None = None

    @property
    def is_plain(self) -> bool:
        """Nothing was found."""
        return self.decision.action is Action.ALLOW and not self.findings


class Judges:
    """Of all callers under one policy, in one direction."""

    def __init__(self, rules: Rules, plugins: Plugins, guard: Guard | None, policy: Policy) -> None:
        self.rules = rules
        self.plugins = plugins
        self.guard = guard
        self.policy = policy
        self._has_rules = bool(rules)
        self._asks_input = plugins.has("check_input")
        self._asks_output = plugins.has("check_output")
        self.holds = policy.review_mode is ReviewMode.HOLD
        """What is to be reviewed waits for it."""

    async def judge_input(self, request: GenerationRequest, caller: Caller) -> Judged:
        """By rules and plugins: the guard is asked for itself. Raises SafetyUnavailable when a plugin failed."""
        findings = await self._in_request(request)
        judged = self._decided(findings, Direction.INPUT)
        if judged.decision.action is Action.BLOCK or not self._asks_input:
            return judged
        answer = await ask(self.plugins, "check_input", request=request, caller=caller)
        if answer is not None:
            findings.append(_of_plugin(answer))
            judged = self._decided(findings, Direction.INPUT)
            judged.error = answer.opinion.as_error(ContentRefused)
        return judged

    def is_clean(self, request: GenerationRequest) -> bool:
        """Whether rules are sure to find nothing in a prompt of short texts, as most are; False says nothing."""
        if not self._has_rules:
            return True
        rules = self.rules
        return all(
            rules.is_clean(text) or (len(text) <= PIECE_CHARS and not rules.judge(text))
            for text in request.texts
        )

    async def redact_input(
        self, request: GenerationRequest, *, is_released: bool = False
    ) -> GenerationRequest | None:
        """The request without what its policy redacts; None where something of it can't be taken out.

        `is_released`: what is to be reviewed may stay."""
        work = partial(self._redact, request)
        changed = work() if request.size <= INLINE_CHARS else await asyncio.to_thread(work)
        if changed is None:
            return None
        left = await self._in_request(changed)
        if is_released:
            left = [f for f in left if self._action(f, Direction.INPUT) is not Action.REVIEW]
        is_strict = self.policy.decide(left, Direction.INPUT).action >= Action.REDACT
        return None if is_strict else changed

    def _redact(self, request: GenerationRequest) -> GenerationRequest | None:
        def clean(text: str) -> str:
            return redacted(text, self.redacts(self.rules.judge(text), Direction.INPUT))

        try:
            return redacted_request(request, clean)
        except RecursionError:  # nested deeper than anybody means it
            return None

    async def shown(self, request: GenerationRequest) -> str:
        """What a reviewer sees of a request before the original: without anything that was found."""

        def work() -> str:
            texts = request.texts
            return "\n".join(redacted(text, self.rules.judge(text)) for text in texts)

        return work() if request.size <= INLINE_CHARS else await asyncio.to_thread(work)

    def redacts(self, findings: Iterable[Finding], direction: Direction) -> list[Finding]:
        """Those of the findings that the policy has cut out."""
        return [f for f in findings if self._action(f, direction) is Action.REDACT]

    def _action(self, finding: Finding, direction: Direction) -> Action:
        return self.policy.decide((finding,), direction).action

    def pass_each_now(
        self, wholes: Sequence[tuple[str, GenerationRequest, Caller]]
    ) -> "list[Answer | bool]":
        """Of whole answers, whether nothing is found by rules, which judge all of them first, and by plugins that
        answer at once; or what a plugin has against it."""
        said: list[Answer | bool] = [not self._has_rules or self._is_clean(w[0]) for w in wholes]
        if not self._asks_output:
            return said
        asked = [at for at, is_clean in enumerate(said) if is_clean]
        facts = map(wholes.__getitem__, asked)
        answers = ask_each_now(self.plugins, "check_output", facts, once=True)
        for at, answer in zip(asked, answers, strict=True):
            said[at] = False if isinstance(answer, NotNow) else answer or True
        return said

    def _is_clean(self, text: str) -> bool:
        """Whether rules find nothing in it. A rule that breaks says no, and breaks again where that is waited for."""
        try:
            if self.rules.is_clean(text):
                return True
            piece = Piece(text)
            return self.rules.takes_whole(piece) and not self.rules.judge_piece(piece)
        except Exception:  # noqa: BLE001 - one answer's bug is none of the others'
            return False

    async def judge_output(self, piece: Piece, case: Case, heard: Answer | None = None) -> Judged:
        """One window of an answer; `heard` is what a plugin has said of it already. Raises SafetyUnavailable as
        `judge_input` does, but not for a plugin."""
        findings: list[Finding] = []
        if self._has_rules:
            is_short = self.rules.takes_whole(piece)
            findings = self.rules.judge_piece(piece) if is_short else []
            if findings or not is_short:
                findings = await _in_piece(self.rules, piece)
        judged = self._decided(findings, Direction.OUTPUT)
        if judged.decision.action is Action.BLOCK:
            return judged
        if self._asks_output:
            answer = heard or await ask(
                self.plugins,
                "check_output",
                text=piece.body,
                request=case.request,
                caller=case.caller,
            )
            if answer is not None:
                findings.append(_of_plugin(answer))
                judged = self._decided(findings, Direction.OUTPUT)
        return judged if self.guard is None else await self.with_guard(judged, case)

    async def with_guard(self, judged: Judged, case: Case) -> Judged:
        """With what the guard finds besides; a policy that fails closed blocks what it could not judge."""
        use = self.policy.guard(case.direction)
        if use is None or self.guard is None or judged.decision.action is Action.BLOCK:
            return judged
        opinion = await ask_guard(self.guard, case, use)
        if opinion is None:
            findings = [*judged.findings, unavailable(use)]
            if use.fails_open:
                return Judged(judged.decision, findings, judged.error)
            decision = Decision(Action.BLOCK, self.policy.name, findings[-1])
            return Judged(decision, findings, no_answer(use))
        theirs = self.policy.decide(opinion.findings, case.direction)
        stricter = theirs if theirs.action > judged.decision.action else judged.decision
        return Judged(stricter, [*judged.findings, *opinion.findings], judged.error, opinion)

    def _decided(self, findings: list[Finding], direction: Direction) -> Judged:
        return Judged(self.policy.decide(findings, direction), findings)

    async def _in_request(self, request: GenerationRequest) -> list[Finding]:
        found: list[Finding] = []
        if not self._has_rules or request.noted(self.rules):
            return found
        for number, text in enumerate(request.texts):
            if number % TEXTS_A_TURN == TEXTS_A_TURN - 1:
                await asyncio.sleep(0)
            if self.rules.is_clean(text):
                continue
            if len(text) <= PIECE_CHARS:
                in_text = self.rules.judge(text)
            else:
                in_text = await _in_piece(self.rules, Piece(text))
            if any(finding.category == "injection" for finding in in_text):
                in_text = _of_strangers(in_text, text, request)
            found += in_text
        if not found:
            request.note(self.rules, True)  # that there is nothing
        return found


def _of_strangers(findings: list[Finding], text: str, request: GenerationRequest) -> list[Finding]:
    """Without injections where the operator of an application wrote the text: he may say what the model is to do."""
    trusted = {
        message.get("content")
        for message in request.messages
        if message.get("role") in ("system", "developer")
        and isinstance(message.get("content"), str)
    }
    if text not in trusted:
        return findings
    return [finding for finding in findings if finding.category != "injection"]


async def _in_piece(rules: Rules, piece: Piece) -> list[Finding]:
    found: list[Finding] = []
    for number, part in enumerate(rules.pieces(piece)):
        if number > 0:
            await asyncio.sleep(0)  # others' turn, before the next few thousand characters
        found += rules.judge_piece(part)
    return list(dict.fromkeys(found))  # parts overlap, and show some of it twice


def _of_plugin(answer: Answer) -> Finding:
    return Finding("plugin", f"plugin:{answer.plugin}", Tier.PLUGIN)
