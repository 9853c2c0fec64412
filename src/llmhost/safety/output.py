"""An answer as it is written: held back in windows, each judged before its first character leaves."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from msgspec import structs

from llmhost.core.caller import Caller
from llmhost.core.errors import SafetyUnavailable
from llmhost.core.request import GenerationRequest
from llmhost.hooks.call import Answer
from llmhost.safety.judges import Judged, Judges
from llmhost.safety.pack.pack import RULES
from llmhost.safety.redact import edits_of, in_json, redacted
from llmhost.safety.verdict import (
    Action,
    Case,
    Decision,
    Direction,
    Finding,
    Journal,
    ReviewMode,
    Reviews,
    Screening,
)
from llmhost.safety.window import Cut, Piece, Window


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one host has decisions written down and reviewed."""

    journal: Journal
    reviews: Reviews | None
    utc_ns: Callable[[], int]

    def screening(
        self,
        request: GenerationRequest,
        caller: Caller,
        model: str | None,
        direction: Direction,
        judged: Judged,
    ) -> Screening:
        """A record of what was decided."""
        return Screening(
            at_ns=self.utc_ns(),
            request_id=request.request_id,
            caller=caller,
            model=model or request.model,
            direction=direction,
            decision=judged.decision,
            findings=tuple(judged.findings),
        )


class Asker(Protocol):
    """The request whose answer it is, on its way."""

    @property
    def model(self) -> str:
        """The one that was chosen, for the journal."""

    def note_screening(self, screening: Screening) -> None:
        """Told what was decided, where anything was found."""


class OutputScreen:
    """One choice's answer: give it text as it comes, send on what it lets out. Not to be called concurrently.

    Once `is_refused`, nothing comes out any more and the choice ends with `content_filter`.
    """

    # What most answers leave as it is costs nothing to make here; nothing of it is changed in its place.
    refused_by: str | None = None
    """`blocked_words[0]`, or `plugin:name`."""
    is_refused = False
    review_id: str | None = None
    held_by: str | None = None
    """The review that the whole answer waits for, once it is complete."""
    _said = ""
    """Let out so far: what guards see before a window, and reviewers."""
    _heard: Answer | None = None
    """What a plugin said of the window that is judged next."""
    _is_referred = False
    _to_hold: Judged | None = None
    """Why the answer is to wait, when all of it is there."""
    _noted: AbstractSet[tuple[Action, str, str]] = frozenset()
    """What was written down of this answer: what was done, and by which rule and category."""
    _passed: Mapping[tuple[str, str], Finding] = MappingProxyType({})
    """What was found and let pass, by rule and category: written down when the answer has ended."""
    _found: AbstractSet[tuple[str, str]] = frozenset()
    """What reviewers see a mark of in place of it, if it is to wait."""
    _opened: Window | None = None
    """Where an answer waits of which something has come, and more is to come."""

    def __init__(
        self,
        desk: Desk,
        judges: Judges,
        request: GenerationRequest,
        caller: Caller,
        asker: Asker | None,
    ) -> None:
        self._desk = desk
        self._judges = judges
        self._request = request
        self._caller = caller
        self._asker = asker

    @property
    def _window(self) -> Window:
        window = self._opened
        if window is None:
            rules = self._judges.rules
            self._opened = window = Window(rules.window_chars, rules.overlap_chars)
        return window

    @property
    def has_guard(self) -> bool:
        """A model is asked about it."""
        return self._judges.guard is not None

    @property
    def can_wait(self) -> bool:
        """It is one answer that nobody has begun to read, and that may be held."""
        asked = self._request
        if not self._judges.holds or self._desk.reviews is None or not asked.can_be_held:
            return False
        return asked.runs == 1 and len(asked.prompts) <= 1 and not asked.stream

    def hold(self, text: str) -> bool:
        """Take text that need not be judged yet; False, and nothing is taken, when it is for `push`."""
        return not self.is_refused and (self._opened or self._window).hold(text)

    def pass_whole(self, text: str) -> str | None:
        """All of an answer that ends with this text, where it fits into one window, is judged without waiting for
        anybody, and passes. Else None, and nothing is taken, but for what a plugin said, which is not asked again.

        It is for `push` and `finish` then.
        """
        (passed,) = pass_all([(self, text)])
        return passed

    def _whole(self, text: str) -> str | None:
        """All of an answer that ends with this text, where it may pass without anybody who is waited for."""
        judges, window = self._judges, self._opened
        is_all = window is None and len(text) < judges.rules.window_chars
        whole = text if is_all else self._window.whole(text)
        if not whole or judges.guard is not None or self.is_refused or self._noted or self._passed:
            return None
        return whole

    def _is_recorded(self) -> bool:
        try:
            self._record(Judged(Decision(Action.ALLOW, self._judges.policy.name), []))
        except SafetyUnavailable:  # which is raised where somebody waits for it
            return False
        return True

    def _is_counted(self, answers: int = 1) -> bool:
        """Nothing was found in the answer, or in several of its caller's: as `Journal.count`."""
        desk, policy = self._desk, self._judges.policy.name
        return desk.journal.count(self._caller, Direction.OUTPUT, policy, desk.utc_ns(), answers)

    async def push(self, text: str) -> str:
        """Judge what there is enough of; the text that may be sent now. Raises SafetyUnavailable."""
        if self.is_refused:
            return ""
        return await self._let_out(self._window.push(text))

    async def finish(self, *, is_cut: bool = False) -> str:
        """The answer is complete: judge the rest; the text that may be sent last. Raises SafetyUnavailable.

        With `is_cut` nobody gets it any more, so no reviewer is asked to let it out."""
        if self.is_refused:
            return ""
        last = await self._let_out(self._window.finish())
        if self._to_hold is not None and not self.is_refused:
            if is_cut:
                self._record(self._to_hold)
            else:
                await self._hold_whole(self._to_hold)
        if not self._passed and not self._noted and self._is_counted():
            return last
        if self._passed or not self._noted:
            allowed = Decision(Action.ALLOW, self._judges.policy.name)
            self._record(Judged(allowed, list(self._passed.values())))
        return last

    async def _let_out(self, piece: Piece | None) -> str:
        if piece is None:
            return ""
        heard, self._heard = self._heard, None
        judged = await self._judges.judge_output(piece, self._case(piece), heard)
        if judged.decision.action is not Action.ALLOW:
            await self._act(judged, piece)
        else:
            self._let_pass(judged.findings)
        if self.is_refused:
            if self._to_hold is not None:  # what was let out of it before is for a reviewer still
                await self._hold_whole(self._to_hold)
            return ""
        released = self._window.release()
        self._said += released
        return released

    def _let_pass(self, findings: Sequence[Finding]) -> None:
        """Of what is found again and again the surest is kept."""
        for found in findings:
            name = found.rule, found.category
            if name not in self._passed or found.score > self._passed[name].score:
                self._passed = {**self._passed, name: found}

    def take_cuts(self) -> tuple[Cut, ...]:
        """What was replaced since the last call, for those who tell of tokens."""
        return self._window.take_cuts()

    def _redact(self, findings: Sequence[Finding], piece: Piece) -> bool:
        """Whether all that is to be replaced has a place."""
        whole, may_be_json = piece.body, bool(self._request.tools or self._request.grammar)
        cut = self._judges.redacts(findings, Direction.OUTPUT)
        for edit in reversed(edits_of(cut)):
            if may_be_json:
                edit = in_json(whole, edit)
            rule = RULES.get(edit.rule)
            self._window.cut(edit.start, edit.end, edit.mark, None if rule is None else rule.tail)
        return all(finding.start < finding.end for finding in cut)

    def _case(self, piece: Piece) -> Case:
        return Case(
            request=self._request,
            caller=self._caller,
            direction=Direction.OUTPUT,
            answer=self._said + piece.body,
            judged_chars=len(self._said),
        )

    async def _act(self, judged: Judged, piece: Piece) -> None:
        finding = judged.decision.finding
        rule = judged.decision.policy if finding is None else finding.rule
        category = "" if finding is None else finding.category
        if judged.decision.action is Action.REVIEW and self.can_wait:
            self._to_hold = self._to_hold or judged
            body = piece.body
            self._found |= {(body[e.start : e.end], e.mark) for e in edits_of(judged.findings)}
            self._noted |= {(Action.REVIEW, rule, category)}
            return
        if judged.decision.action is Action.REVIEW:
            action = await self._reviewed(judged, piece)
            if action is Action.WARN and self._judges.redacts(judged.findings, Direction.OUTPUT):
                action = Action.REDACT  # released, and all else that is found counts as well
            judged.decision = structs.replace(judged.decision, action=action)
        action = judged.decision.action
        if action is Action.REDACT and not self._redact(judged.findings, piece):
            judged.decision = structs.replace(judged.decision, action=Action.BLOCK)
        if judged.decision.action > Action.REDACT:
            self.refused_by, self.is_refused = rule, True
            judged.findings += self._passed.values()  # no other row will tell of them
            self._passed = {}
        if isinstance(judged.error, SafetyUnavailable):
            self._record(judged)
            raise judged.error
        decided = (judged.decision.action, rule, category)
        if decided not in self._noted:
            self._record(judged)
        self._noted |= {decided}

    async def _reviewed(self, judged: Judged, piece: Piece) -> Action:
        """What becomes of what a human is to decide on. An answer is one item, however often something is found."""
        reviews = self._desk.reviews
        if reviews is None:
            return Action.BLOCK
        text = self._said + piece.body
        if reviews.approved(self._caller, text):
            return Action.ALLOW
        mode = self._judges.policy.review_mode
        if not self._is_referred:
            self._is_referred = True
            screening = self._screened(judged)
            shown = self._said + redacted(piece.body, judged.findings)
            self.review_id = await reviews.refer(screening, text, shown, mode)
            if self.review_id is None and mode is not ReviewMode.RELEASE:
                return Action.BLOCK  # a reviewer has rejected it before
        return Action.WARN if mode is ReviewMode.RELEASE else Action.REVIEW

    async def _hold_whole(self, judged: Judged) -> None:
        """Reviewers see all of an answer, and it goes out as it is or not at all."""
        reviews = self._desk.reviews
        assert reviews is not None
        if reviews.approved(self._caller, self._said):
            judged.decision = structs.replace(judged.decision, action=Action.ALLOW)
            self._record(judged)
            return
        shown = self._said
        for text, mark in sorted(self._found, key=lambda pair: -len(pair[0])):
            shown = shown.replace(text, mark)
        self.held_by = self.review_id = await reviews.refer(
            self._screened(judged), self._said, shown, ReviewMode.HOLD
        )
        if self.held_by is None:  # what was let out so far waits for its end, and must not go out
            raise SafetyUnavailable("The answer is for a reviewer, and none takes it. Try again.")
        self._record(judged)

    def _record(self, judged: Judged) -> None:
        screening = replace(self._screened(judged), review_id=self.review_id)
        self._desk.journal.record(screening)
        if self._asker is not None:
            self._asker.note_screening(screening)

    def _screened(self, judged: Judged) -> Screening:
        model = None if self._asker is None else self._asker.model
        return self._desk.screening(self._request, self._caller, model, Direction.OUTPUT, judged)


def pass_all(ended: Sequence[tuple[OutputScreen, str]]) -> list[str | None]:
    """`pass_whole` of each: those of one policy are judged together, and those that pass are written down at once where
    they are one caller's. Of one that can't be judged now nothing is taken; that shows again where it is waited for."""
    passed: list[str | None] = [None] * len(ended)
    alike: dict[int, list[tuple[int, str]]] = {}
    for at, (screen, text) in enumerate(ended):
        if whole := screen._whole(text):
            alike.setdefault(id(screen._judges), []).append((at, whole))
    for answers in alike.values():
        _pass_alike([(at, ended[at][0], whole) for at, whole in answers], passed)
    return passed


def _pass_alike(answers: list[tuple[int, OutputScreen, str]], passed: list[str | None]) -> None:
    """Those whose judges are the same."""
    judges = answers[0][1]._judges
    said = judges.pass_each_now([(whole, s._request, s._caller) for _, s, whole in answers])
    groups: dict[int, list[tuple[int, OutputScreen, str]]] = {}
    for answer, one in zip(answers, said, strict=True):
        if one is True:
            groups.setdefault(id(answer[1]._caller), []).append(answer)
        else:
            answer[1]._heard = one or None
    for group in groups.values():
        is_counted = group[0][1]._is_counted(len(group))
        for at, screen, whole in group:
            if is_counted or screen._is_recorded():
                passed[at] = whole
