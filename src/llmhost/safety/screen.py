"""The safety stage of a request: judges find, the caller's policy decides, and what was decided is written down.

Runs on the HTTP loop; long text is judged in pieces, and other requests get their turn in between.
"""

import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace as replace_of

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Caller
from llmhost.core.errors import (
    BadRequest,
    ContentRefused,
    HeldForReview,
    InvalidValue,
    LlmhostError,
    SafetyUnavailable,
)
from llmhost.core.request import GenerationRequest
from llmhost.hooks.registry import Plugins
from llmhost.safety.asking import NoGuard
from llmhost.safety.defaults import LogJournal, NodePolicy, SamePolicy
from llmhost.safety.judges import Judged, Judges
from llmhost.safety.output import Asker, Desk, OutputScreen
from llmhost.safety.pack.pack import Pack
from llmhost.safety.rules import Rules
from llmhost.safety.verdict import (
    Action,
    Case,
    Decision,
    Direction,
    Guard,
    Journal,
    KeepPrompts,
    Policies,
    Policy,
    ReviewMode,
    Reviews,
    Screening,
)
from llmhost.safety.window import Window

MOST_RULES = 512
"""Sets of rules that are kept compiled: those of one policy, in one direction."""

RulesKey = tuple[tuple[str, ...], tuple[str, ...], Direction, int]
"""Words, what is looked for, where, and the window."""
Note = Callable[[Screening], None]
Decode = Callable[[tuple[int, ...]], str]


def _nobody(screening: Screening) -> None:
    """Where nobody wants to know what was decided."""


class Passed(msgspec.Struct, frozen=True):
    """A prompt that may run: as it is to run, and what was found all the same."""

    request: GenerationRequest
    screening: Screening | None = None
    """None where nothing judges prompts."""
    guarded: Coroutine[Any, Any, Screening] | None = None
    """A guard's verdict, which is to be awaited before anything of an answer leaves. Raises as `check_input` does."""


class Screen:
    """One host's screen. Raises ConfigError when a rule is none."""

    def __init__(
        self,
        settings: SafetySettings,
        plugins: Plugins,
        *,
        policies: Policies | None = None,
        journal: Journal | None = None,
        reviews: Reviews | None = None,
        guard: Guard | None = None,
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Without `policies` the one of [safety] holds for all; without `reviews` what is to be reviewed is blocked;
        without `guard` a policy that wants one is told that it has no answer."""
        self._settings = settings
        self._plugins = plugins
        self._policies = policies or SamePolicy(NodePolicy(settings))
        self._journal = journal or LogJournal()
        self._reviews = reviews
        self._guard = guard or NoGuard()
        self._utc_ns = utc_ns
        self._desk = Desk(self._journal, reviews, utc_ns)
        self._rules: dict[RulesKey, Rules] = {}
        self._compiled = threading.Lock()  # policies are prepared in threads
        self._known: dict[tuple[int, Direction], tuple[Policy, Judges | None]] = {}
        """Who judges under a policy, which never changes, by its id and kept alive by it."""
        Rules(settings)  # a rule that is none fails the start

    def prepare(self, policy: Policy) -> None:
        """Compile what a policy looks for, in a thread, before any request meets it. Raises ConfigError."""
        for direction in Direction:
            self._judges(policy, direction)

    def policy_of(self, caller: Caller) -> str:
        """Name and version of the policy by which a caller's texts are judged."""
        return self._policies.of(caller).name

    def judged_by(self, caller: Caller, direction: Direction) -> str | None:
        """The policy under which somebody judges a caller's texts; None where nobody does."""
        policy = self._policies.of(caller)
        return None if self._judges(policy, direction) is None else policy.name

    def is_light(self, caller: Caller) -> bool:
        """No model judges a caller's texts, and no prompt is kept in which nothing was found."""
        policy = self._policies.of(caller)
        has_guard = any(policy.guard(direction) is not None for direction in Direction)
        return not has_guard and policy.keep_prompts.which != "all"

    def is_clean(self, request: GenerationRequest, caller: Caller) -> bool:
        """Whether rules are sure to find nothing in a prompt of short texts; False says nothing."""
        judges = self._judges(self._policies.of(caller), Direction.INPUT)
        return judges is None or judges.is_clean(request)

    def windows(self, caller: Caller, text: str) -> list[str]:
        """The parts of an answer, all of which is there, that plugins are asked about if they let each pass."""
        judges = self._judges(self._policies.of(caller), Direction.OUTPUT)
        if judges is None:
            return []
        window = Window(judges.rules.window_chars, judges.rules.overlap_chars)
        first = window.push(text)
        if first is not None:
            window.release()
        pieces = (first, window.finish())
        return [piece.body for piece in pieces if piece is not None]

    def note_passed(
        self,
        request: GenerationRequest,
        caller: Caller,
        model: str,
        direction: Direction,
        policy: str,
    ) -> None:
        """Write down that a text passed which is known to have nothing in it. Raises SafetyUnavailable."""
        at_ns = self._utc_ns()
        if self._journal.count(caller, direction, policy, at_ns):
            return
        self._journal.record(
            Screening(
                at_ns=at_ns,
                request_id=request.request_id,
                caller=caller,
                model=model,
                direction=direction,
                decision=Decision(Action.ALLOW, policy),
                findings=(),
            )
        )

    def count_passed(self, caller: Caller, direction: Direction, policy: str, texts: int) -> bool:
        """The same of texts of one caller; False, and nothing is written down, where that is done for each."""
        return self._journal.count(caller, direction, policy, self._utc_ns(), texts)

    async def check_input(
        self,
        request: GenerationRequest,
        caller: Caller,
        *,
        model: str | None = None,
        decode: Decode | None = None,
        note: Note = _nobody,
    ) -> Passed:
        """Comes back when the prompt may run, as far as rules and plugins say; what a guard says may come later.

        `decode` makes prompts of token ids readable; without it they are refused wherever something reads prompts.
        `model` is the one that was chosen, for the journal; `note` is told what was decided.

        Raises ContentRefused, HeldForReview, or SafetyUnavailable when a plugin, a guard or the queue failed.
        """
        judges = self._judges(self._policies.of(caller), Direction.INPUT)
        if judges is None:
            return Passed(request)
        readable = _readable(request, decode)
        judged = await judges.judge_input(readable, caller)
        keeps_all = judges.policy.keep_prompts.which == "all"
        if judged.is_plain and judges.guard is None and not keeps_all:
            policy = judged.decision.policy
            if self._journal.count(caller, Direction.INPUT, policy, self._utc_ns()):
                return Passed(request)
        passed = Passed(request)
        is_released = self._is_released(judges, judged, readable, caller)
        if judged.decision.action is Action.REDACT or (
            is_released and judges.redacts(judged.findings, Direction.INPUT)
        ):
            changed = await judges.redact_input(readable, is_released=is_released)
            passed = Passed(changed or request)
            if changed is None:
                judged.decision = replace_of(judged.decision, action=Action.BLOCK)
        asked = readable if passed.request is request else passed.request
        case = Case(request=asked, caller=caller, direction=Direction.INPUT)
        shown = readable if is_released else asked
        concluded = partial(self._concluded, judges, case=case, sent=shown, model=model, note=note)
        is_decided = judged.decision.action > Action.REDACT
        is_held = is_decided and not (is_released and judged.decision.action is Action.REVIEW)
        if judges.guard is None or is_held:
            return replace_of(passed, screening=await concluded(judged))

        async def guarded() -> Screening:
            return await concluded(await judges.with_guard(judged, case))

        return replace_of(passed, guarded=guarded())

    def _is_released(
        self, judges: Judges, judged: Judged, request: GenerationRequest, caller: Caller
    ) -> bool:
        """Whether what is to be reviewed passes meanwhile: then all else that is found of it counts as well."""
        return (
            judged.decision.action is Action.REVIEW
            and judges.policy.review_mode is ReviewMode.RELEASE
            and self._reviews is not None
            and not self._reviews.approved(caller, request.text)
        )

    async def _concluded(
        self,
        judges: Judges,
        judged: Judged,
        *,
        case: Case,
        sent: GenerationRequest,
        model: str | None,
        note: Note,
    ) -> Screening:
        """What a prompt's findings come to, written down. Raises where that is a refusal.

        `sent` is what reviewers see, and `case` has what runs."""
        passes_with_cuts = judged.decision.action is Action.REDACT or self._is_released(
            judges, judged, sent, case.caller
        )
        cuts = judges.redacts(judged.findings, case.direction) if passes_with_cuts else []
        if whole := next((found for found in cuts if found.start >= found.end), None):
            # It was found in the text as a whole, and can't be taken out of it.
            judged.decision = Decision(Action.BLOCK, judged.decision.policy, whole)
        screening = self._desk.screening(case.request, case.caller, model, case.direction, judged)
        if judged.decision.action is Action.REVIEW:
            screening = await self._reviewed(screening, judges, sent)
            if screening.decision.action is Action.WARN and case.request is not sent:
                screening = _with(screening, Action.REDACT)
        await self._write_down(screening, judges.policy.keep_prompts, case.request)
        note(screening)
        if screening.decision.action > Action.REDACT:
            raise _refusal(case.request, screening, judges.policy.review_mode, judged.error)
        return screening

    async def _write_down(
        self, screening: Screening, keep: KeepPrompts, request: GenerationRequest
    ) -> None:
        """Raises SafetyUnavailable; so it does for a prompt that there is no room for, if the policy fails closed."""
        written = _with_prompt(screening, keep, request)
        try:
            await self._journal.make_room(written)
        except SafetyUnavailable:
            if not keep.fails_open:
                raise
        self._journal.record(written)

    def watch_output(
        self,
        request: GenerationRequest,
        caller: Caller,
        asker: Asker | None = None,
    ) -> OutputScreen | None:
        """A screen for one choice; None when nothing judges answers, so that their streams pay nothing."""
        judges = self._judges(self._policies.of(caller), Direction.OUTPUT)
        if judges is None:
            return None
        return OutputScreen(self._desk, judges, request, caller, asker)

    def check_length(self, request: GenerationRequest) -> None:
        """Before a prompt is rendered or tokenised: a token id counts as a character. Raises InvalidValue."""
        most = self._settings.max_prompt_chars
        if most is None or (size := request.size) <= most:
            return
        unit = "token ids" if any(isinstance(p, tuple) for p in request.prompts) else "characters"
        raise InvalidValue(
            f"The prompt is {size} {unit}; this server takes {most}. Shorten it.",
            param=_param(request),
        )

    def _judges(self, policy: Policy, direction: Direction) -> Judges | None:
        """Those who judge under a policy; None when nobody does."""
        known = self._known.get((id(policy), direction))
        if known is not None and known[0] is policy:
            judges = known[1]
            if judges is not None:
                judges.rules.was_used = True
            return judges
        judges = self._made(policy, direction)
        if len(self._known) >= MOST_RULES:
            self._known.clear()
        self._known[id(policy), direction] = policy, judges
        return judges

    def _made(self, policy: Policy, direction: Direction) -> Judges | None:
        rules = self._rules_of(policy, direction)
        guard = None if policy.guard(direction) is None else self._guard
        hook = "check_input" if direction is Direction.INPUT else "check_output"
        keeps = direction is Direction.INPUT and policy.keep_prompts.which == "all"
        if not (rules or guard or keeps or self._plugins.has(hook)):
            return None
        return Judges(rules, self._plugins, guard, policy)

    def _rules_of(self, policy: Policy, direction: Direction) -> Rules:
        """Compiled once for all policies that ask for the same."""
        window_chars = policy.window_chars or self._settings.window_chars
        key = (policy.words, policy.looks_for(direction), direction, window_chars)
        with self._compiled:
            if (rules := self._rules.get(key)) is not None:
                rules.was_used = True
                return rules
        settings = replace_of(self._settings, window_chars=window_chars)
        if direction is Direction.OUTPUT and not settings.check_output:
            settings = replace_of(settings, blocked_words=(), blocked_patterns=())
        rules = Rules(settings, key[0], Pack(key[1], direction))
        with self._compiled:
            self._rules[key] = rules
            while len(self._rules) > MOST_RULES:
                self._give_up_one(rules)
        return rules

    def _give_up_one(self, newest: Rules) -> None:
        """The oldest set of rules that was not used since this last came by: what requests meet is not compiled
        again."""
        while True:
            key = next(iter(self._rules))
            oldest = self._rules.pop(key)
            if not (oldest.was_used or oldest is newest):
                return
            oldest.was_used = False
            self._rules[key] = oldest

    async def _reviewed(
        self, screening: Screening, judges: Judges, request: GenerationRequest
    ) -> Screening:
        """What becomes of a prompt that a human is to decide on."""
        text, mode = request.text, judges.policy.review_mode
        if self._reviews is None:
            return _with(screening, Action.BLOCK)
        if self._reviews.approved(screening.caller, text):
            return _with(screening, Action.ALLOW)
        shown = await judges.shown(request)
        review_id = await self._reviews.refer(screening, text, shown, mode)
        referred = replace(screening, review_id=review_id)
        if mode is ReviewMode.RELEASE:
            return _with(referred, Action.WARN)
        return referred if review_id is not None else _with(referred, Action.BLOCK)


def _with_prompt(screening: Screening, keep: KeepPrompts, request: GenerationRequest) -> Screening:
    """With the prompt as it runs, or would, where that is to be kept."""
    is_found = bool(screening.findings) or screening.decision.action > Action.ALLOW
    if keep.which == "never" or (keep.which == "found" and not is_found):
        return screening
    return replace(screening, prompt=request.text, prompt_days=keep.days)


def _with(screening: Screening, action: Action) -> Screening:
    return replace(screening, decision=replace_of(screening.decision, action=action))


def _refusal(
    request: GenerationRequest,
    screening: Screening,
    mode: ReviewMode,
    error: LlmhostError | None,
) -> LlmhostError:
    finding, review_id = screening.decision.finding, screening.review_id
    if review_id is not None and mode is ReviewMode.HOLD:
        return HeldForReview(review_id)
    if isinstance(error, SafetyUnavailable):
        return error
    if error is not None and finding is not None and finding.rule.startswith("plugin:"):
        return error
    rule = "" if finding is None else f": it breaks the rule {finding.rule}"
    if review_id is None:
        cure = "Rephrase it and send it again."
    else:
        cure = f"It waits for a reviewer as {review_id}: send it again once it is approved, or rephrase it."
    return ContentRefused(
        f"This server does not take the prompt{rule}. {cure}",
        param=_param(request),
        review_id=review_id,
    )


def _readable(request: GenerationRequest, decode: Decode | None) -> GenerationRequest:
    if all(isinstance(prompt, str) for prompt in request.prompts):
        return request
    if decode is None:
        raise BadRequest(
            "This server checks prompts before it runs them, and can't read this one: it is token ids. Send text.",
            param=_param(request),
        )
    prompts = tuple(p if isinstance(p, str) else decode(p) for p in request.prompts)
    return replace(request, prompts=prompts)


def _param(request: GenerationRequest) -> str:
    if request.pooled is not None:
        return request.pooled.fields[-1][0]
    return request.kind.prompt_field
