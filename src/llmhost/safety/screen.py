"""The safety stage of a request: rules first, then plugins, on the way in and on the way out.

Runs on the HTTP loop; long text is judged in pieces, and other requests get their turn in between.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from llmhost.config.schema import SafetySettings
from llmhost.core.errors import BadRequest, ContentRefused, InvalidValue
from llmhost.core.request import Caller, GenerationRequest
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.safety.rules import PIECE_CHARS, Rules, Verdict
from llmhost.safety.window import Piece, Window

log = logging.getLogger("llmhost.safety")

TEXTS_A_TURN = 64
"""So many texts are judged before other requests get their turn, however short they are."""

Decode = Callable[[tuple[int, ...]], str]


class Screen:
    """One host's screen. Raises ConfigError when a rule is none."""

    def __init__(self, settings: SafetySettings, plugins: Plugins) -> None:
        self._rules = Rules(settings)
        self._max_prompt_chars = settings.max_prompt_chars
        self._has_output_rules = settings.check_output and bool(self._rules)
        self._plugins = plugins

    async def check_input(
        self, request: GenerationRequest, caller: Caller, *, decode: Decode | None = None
    ) -> None:
        """Comes back when the prompt may run. `decode` makes prompts of token ids readable; without it they are
        refused wherever something reads prompts.

        Raises ContentRefused, or SafetyUnavailable when a plugin failed.
        """
        has_plugins = self._plugins.has("check_input")
        if not (self._rules or has_plugins):
            return
        request = _readable(request, decode)
        await self._check_rules(request)
        if has_plugins:
            await self._check_plugins(request, caller)

    def watch_output(self, request: GenerationRequest, caller: Caller) -> "OutputScreen | None":
        """A screen for one choice; None when nothing judges answers, so that their streams pay nothing."""
        if not (self._has_output_rules or self._plugins.has("check_output")):
            return None
        rules = self._rules if self._has_output_rules else None
        window = Window(self._rules.window_chars, self._rules.overlap_chars)
        return OutputScreen(rules, window, self._plugins, request, caller)

    def check_length(self, request: GenerationRequest) -> None:
        """Before a prompt is rendered or tokenised: a token id counts as a character. Raises InvalidValue."""
        if self._max_prompt_chars is None or (size := request.size) <= self._max_prompt_chars:
            return
        unit = "token ids" if any(isinstance(p, tuple) for p in request.prompts) else "characters"
        raise InvalidValue(
            f"The prompt is {size} {unit}; this server takes {self._max_prompt_chars}. Shorten it.",
            param=_param(request),
        )

    async def _check_rules(self, request: GenerationRequest) -> None:
        if not self._rules:
            return
        for number, text in enumerate(request.texts):
            if number % TEXTS_A_TURN == TEXTS_A_TURN - 1:
                await asyncio.sleep(0)
            if len(text) <= PIECE_CHARS:
                verdict = self._rules.judge(text)
            else:
                verdict = await _judge(self._rules, Piece(text))
            if verdict is not None:
                _note_refusal("input", request, verdict.rule)
                raise ContentRefused(
                    f"This server does not take the prompt: it breaks the rule {verdict.rule}."
                    " Rephrase it and send it again.",
                    param=_param(request),
                )

    async def _check_plugins(self, request: GenerationRequest, caller: Caller) -> None:
        answer = await ask(self._plugins, "check_input", request=request, caller=caller)
        if answer is not None:
            _note_refusal("input", request, f"plugin:{answer.plugin}")
            raise answer.opinion.as_error(ContentRefused)


class OutputScreen:
    """One choice's answer: give it text as it comes, send on what it lets out. Not to be called concurrently.

    Once `is_refused`, nothing comes out any more and the choice ends with `content_filter`.
    """

    def __init__(
        self,
        rules: Rules | None,
        window: Window,
        plugins: Plugins,
        request: GenerationRequest,
        caller: Caller,
    ) -> None:
        self._rules = rules
        self._window = window
        self._plugins = plugins
        self._request = request
        self._caller = caller
        self.refused_by: str | None = None
        """`blocked_words[0]`, or `plugin:name`."""

    @property
    def is_refused(self) -> bool:
        return self.refused_by is not None

    def hold(self, text: str) -> bool:
        """Take text that need not be judged yet; False, and nothing is taken, when it is for `push`."""
        return not self.is_refused and self._window.hold(text)

    async def push(self, text: str) -> str:
        """Judge what there is enough of; the text that may be sent now."""
        if self.is_refused:
            return ""
        return await self._let_out(self._window.push(text))

    async def finish(self) -> str:
        """The answer is complete: judge the rest; the text that may be sent last."""
        if self.is_refused:
            return ""
        return await self._let_out(self._window.finish())

    async def _let_out(self, piece: Piece | None) -> str:
        if piece is None:
            return ""
        self.refused_by = await self._objection(piece)
        if self.is_refused:
            _note_refusal("output", self._request, self.refused_by)
            return ""
        return self._window.release()

    async def _objection(self, piece: Piece) -> str | None:
        if self._rules is not None:
            verdict = await _judge(self._rules, piece)
            if verdict is not None:
                return verdict.rule
        if not self._plugins.has("check_output"):
            return None
        answer = await ask(
            self._plugins,
            "check_output",
            text=piece.body,
            request=self._request,
            caller=self._caller,
        )
        return None if answer is None else f"plugin:{answer.plugin}"


async def _judge(rules: Rules, piece: Piece) -> Verdict | None:
    for number, part in enumerate(rules.pieces(piece)):
        if number > 0:
            await asyncio.sleep(0)  # others' turn, before the next few thousand characters
        verdict = rules.judge_piece(part)
        if verdict is not None:
            return verdict
    return None


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


def _note_refusal(where: str, request: GenerationRequest, why: str | None) -> None:
    log.info("safety.refused where=%s request=%s why=%s", where, request.request_id, why)
