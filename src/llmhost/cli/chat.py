"""`llmhost chat`: talk to a model over the same API that every client uses."""

import math
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmhost.cli import show
from llmhost.cli.node import NoNode, need_address
from llmhost.cli.options import DataDir, Url, examples
from llmhost.core.errors import LlmhostError

if TYPE_CHECKING:
    from llmhost.cli.caller import ChatClient

HELP = "/reset forgets the conversation, /model NAME changes the model, /quit or Ctrl-D leaves."
INTERRUPTED = "interrupted"


def add_to(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            "llmhost chat",
            'llmhost chat tiny --system "Answer in one sentence."',
            'llmhost chat -m "What is a ledger?" --json',
            "llmhost chat < question.txt",
        )
    )(chat)


class Chat:
    """One conversation. Its history is what the next question is asked with."""

    def __init__(
        self, api: "ChatClient", model: str, *, system: str | None = None, **sampling: object
    ) -> None:
        self.model = model
        self._api = api
        self._system = system
        self._sampling = {key: value for key, value in sampling.items() if value is not None}
        self._history: list[dict[str, str]] = []

    def reset(self) -> None:
        self._history.clear()

    def body(self, question: str) -> dict[str, Any]:
        system = [{"role": "system", "content": self._system}] if self._system else []
        messages = [*system, *self._history, {"role": "user", "content": question}]
        return {"model": self.model, "messages": messages, **self._sampling}

    def ask(self, question: str, write: Callable[[str], object]) -> str | None:
        """Write the answer as it comes. Returns its finish reason, or INTERRUPTED after Ctrl-C.

        What was said of a stopped answer stays in the history. A failed question leaves no trace there.
        """
        said: list[str] = []
        finish = None
        try:
            with closing(self._api.stream(self.body(question))) as chunks:
                for chunk in chunks:
                    for choice in chunk.get("choices") or ():
                        if text := choice.get("delta", {}).get("content"):
                            said.append(text)
                            write(text)
                        finish = choice.get("finish_reason") or finish
        except KeyboardInterrupt:
            finish = INTERRUPTED
        if said or finish != INTERRUPTED:
            self._history += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "".join(said)},
            ]
        return finish


def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The node's first model when absent.")
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="Ask this, print the answer, leave."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", "-s", metavar="S", help="Instructions to the model.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", min=0, help="0 is the likeliest answer.")
    ] = None,
    url: Url = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="API key, or LLMHOST_API_KEY.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="With one question: print the answer object.", show_default=False
        ),
    ] = False,
) -> None:
    """Talk to a model. With -m, or with text piped in, ask one question.

    In a conversation Ctrl-C stops the answer; /help lists what else can be said.
    """
    if temperature is not None and not math.isfinite(temperature):
        raise typer.BadParameter("must be a number", param_hint="--temperature")
    question = message
    if question is None and not _is_terminal():
        question = sys.stdin.read().strip()
        if not question:
            raise typer.BadParameter("is empty; pipe text in, or use -m", param_hint="stdin")
    if question is None and as_json:
        raise typer.BadParameter("needs one question: use -m or pipe text in", param_hint="--json")
    with closing(connect(url, api_key, data_dir)) as api:
        talk = Chat(
            api,
            model or _first_model(api),
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        if question is None:
            converse(talk, input)
        elif as_json:
            show.value(api.complete(talk.body(question)))
        elif _answer(talk, question) == INTERRUPTED:
            raise KeyboardInterrupt


def converse(talk: Chat, read: Callable[[str], str]) -> None:
    """Questions and answers until the end of input."""
    _edit_lines()
    show.note(f"{talk.model}. {HELP}")
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            typer.echo()
            return
        except KeyboardInterrupt:
            typer.echo()
            show.note("Ctrl-D or /quit leaves.")
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            show.note(_command(talk, line))
        elif line:
            try:
                _answer(talk, line)
            except LlmhostError as error:
                typer.echo(f"Error: {error}", err=True)


def _command(talk: Chat, line: str) -> str:
    match line.split():
        case ["/reset"]:
            talk.reset()
            return "The conversation starts anew."
        case ["/model", name]:
            talk.model = name
            return f"Now talking to {name}."
        case ["/model"]:
            return f"Talking to {talk.model}."
        case ["/help"]:
            return HELP
    return f"{line.split()[0]} is not known. {HELP}"


def _answer(talk: Chat, question: str) -> str | None:
    finish = talk.ask(question, _write)
    typer.echo()
    if finish == INTERRUPTED:
        show.note("(stopped)")
    elif finish == "length":
        show.note("(cut: the answer reached its longest length)")
    elif finish == "content_filter":
        show.note("(ended by a content rule)")
    return finish


def _write(text: str) -> None:
    typer.echo(show.printable(text), nl=False)
    sys.stdout.flush()


def connect(url: str | None, api_key: str | None, data_dir: Path | None) -> "ChatClient":
    """A client of a node, with the key that was given or that the environment has."""
    from llmhost.cli.caller import ChatClient
    from llmhost.config.environment import process_environment, read_variables

    variables = read_variables(process_environment())
    return ChatClient(need_address(url, data_dir), api_key or variables.api_key)


def _first_model(api: "ChatClient") -> str:
    names = api.models()
    if not names:
        raise NoNode("The server offers no model. Declare one in its models.toml.")
    return names[0]


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _edit_lines() -> None:
    """Arrow keys and history for input(), where Python has readline. Kept in memory only."""
    with suppress(ImportError):
        import readline  # noqa: F401
