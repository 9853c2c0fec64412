"""Protocols, only where two real implementations stand behind one."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Drawn, GrammarState, KvMove, Row
from llmhost.core.thoughts import ThoughtIds


class Clock(Protocol):
    """Time as the process sees it; tests bring a manual one."""

    def monotonic_ns(self) -> int: ...

    def utc_ns(self) -> int: ...


@dataclass(slots=True)
class Turn:
    """One stay on a device, in monotonic nanoseconds; `ended_ns` is set when the turn is over."""

    started_ns: int = 0
    ended_ns: int = 0
    nano: int = 0
    """What it cost, in nano-dollars; 0 where the device has no rate."""


class LaneAccount(NamedTuple):
    """A device's time up to the end of its last turn, and what the busy part of it cost."""

    busy_ns: int = 0
    idle_ns: int = 0
    nano: int = 0
    last_ns: int = 0
    """When the last turn ended, or the lane was opened."""
    since_ns: int | None = None
    """When the turn began that runs now."""

    def busy_at(self, now_ns: int) -> int:
        """Busy nanoseconds up to now, the running turn's among them."""
        return self.busy_ns + (0 if self.since_ns is None else max(now_ns - self.since_ns, 0))

    def idle_at(self, now_ns: int) -> int:
        """Idle nanoseconds up to now. Together with `busy_at` it is the time since the lane was opened."""
        until_ns = now_ns if self.since_ns is None else self.since_ns
        return self.idle_ns + max(until_ns - self.last_ns, 0)


class Lane(Protocol):
    """A device's time: turns never overlap, and what lies between them is recorded as idle."""

    @property
    def is_wanted(self) -> bool:
        """Somebody waits for a turn."""
        ...

    def take(self) -> Turn:
        """Wait for a turn; it lasts until `give`."""
        ...

    def split(self, turn: Turn) -> Turn:
        """End a turn and begin the next at the same instant, with nobody in between."""
        ...

    def give(self, turn: Turn) -> None:
        """End a turn."""
        ...

    def turn(self) -> AbstractContextManager[Turn]: ...

    @property
    def opened_ns(self) -> int | None:
        """Since when busy and idle time add up to all time; None for a lane on which turns may overlap."""
        ...

    def account(self) -> LaneAccount:
        """Safe to ask for from any thread; it waits for nobody's turn."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerFacts:
    """What the scheduler and the memory ledger must know of a loaded model."""

    device: str
    """`cpu:0`, `cuda:0`, or `none` for a runner that uses no device."""
    vocab_size: int
    max_sequence_length: int
    """Tokens in prompt and answer together, as the model was trained."""
    block_tokens: int
    kv_block_bytes: int
    """Bytes of one KV block over all layers; 0 when the runner keeps none."""
    weights_bytes: int
    """Of the loaded weights; in a footprint, what is predicted of them."""
    step_token_bytes: int = 0
    """Of intermediate results, for each token that a step feeds."""
    step_row_bytes: int = 0
    """Of intermediate results, for each sequence that draws in a step."""
    measured_bytes: int | None = None
    """What loading them took on the device, by the device's own count; None where it has none."""
    attends: str | None = None
    """Who attends to prompts on a GPU, as the option `attention` calls it; None where there is no choice."""
    runs_ahead: bool = False
    """It has `launch` and takes rows whose token is `PENDING`."""
    checks_drafts: bool = False
    """It draws after each confirmed guess of a row, as `Row.drafts` says. Others are given no guesses."""
    can_be_interrupted: bool = False
    """A step ends early when it must, see `InterruptibleRunner`."""
    can_sleep: bool = False
    """Its weights can wait in host memory, see `SleepingRunner`."""
    least_chunk_tokens: int = 8
    """A prompt gets on by so much in every step, whatever that does to those who decode, unless the operator has set
    a target. More where small steps are dear."""
    rows_at_once: int = 1
    """Tokens of a step that it computes together: one more than a multiple of this costs about as much as all the next
    ones."""
    gather_s: float = 0.0
    """How long a step that ends idleness waits for more prompts, counted anew as each comes: for runners to which one
    large step is cheaper than two."""
    reenters: bool = False
    """A step goes in and out of the interpreter many times: the device waits while another thread keeps it."""
    task: str = "generate"
    """What the model is for: `generate`, or to pool a text into one vector (`embed`) or scores (`classify`)."""
    pooled_size: int = 0
    """Numbers in what it pools a text into."""
    labels: tuple[str, ...] = ()
    """What each score of `classify` is for."""


class Runner(Protocol):
    """A loaded model that can run one step. Called from one thread at a time, its engine loop's.

    A runner takes no KV memory by itself: `set_kv_blocks` hands it a lease, and may be called again between
    steps. What the blocks hold after a resize is kept for blocks below both counts.
    """

    @property
    def facts(self) -> RunnerFacts: ...

    def set_kv_blocks(self, count: int) -> None: ...

    def set_host_blocks(self, count: int) -> None:
        """Have room in host memory for so many KV blocks. Called once, before the first move."""
        ...

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        """Copy blocks to the host and back, in order, before the next `run`."""
        ...

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        """One forward pass: for each row the drawn token, None where none was wanted, or that row's failure.

        Raising fails every row of the step.
        """
        ...

    def close(self) -> None:
        """Give back weights and KV memory. Idempotent."""
        ...


class Flight(Protocol):
    """A step that was handed to the device."""

    def draw(self) -> None:
        """Draw what a grammar holds by the token before it, which is known now: the step before has been taken in.

        Called once, before the next launch. The device is not waited for.
        """
        ...

    def land(self) -> list[Drawn]:
        """Wait for it, without Python's lock; what `Runner.run` would have returned or raised."""
        ...


class AheadRunner(Runner, Protocol):
    """A runner that can be given a step before the last one is done. Steps are done in the order of their launch."""

    def launch(self, rows: Sequence[Row]) -> Flight:
        """Begin with a step. Its rows have no guesses, adapter or pooling, and score no prompt.

        A row whose token is `PENDING` was in the step launched before, and wanted a token there. Its `known` ends
        before that token, which counts for all that looks at the text; its grammar may turn out to hold nothing.
        """
        ...


class SleepingRunner(Runner, Protocol):
    """A runner whose weights can make room on their device without being forgotten. Called between two steps."""

    def sleep(self) -> None:
        """Move the weights to host memory. Called without KV blocks; until `wake` no step is run."""
        ...

    def wake(self) -> None:
        """Move them back. Raises OutOfMemory, and goes on sleeping."""
        ...


class InterruptibleRunner(Runner, Protocol):
    """A runner whose steps may take seconds, and can be cut short."""

    def interrupt(self) -> None:
        """Have the step that runs end at once, with a failure, as do all that follow. From any thread; what comes
        next is `close`."""
        ...


class AdapterHost(Protocol):
    """The LoRA adapters of a loaded model. A runner that can run them has one as `adapters`."""

    def size_bytes(self, folder: Path) -> int:
        """What the adapter in `folder` will take on the device, from its headers. Any thread. Raises
        ModelUnavailable."""
        ...

    def read(self, folder: Path) -> Any:
        """The adapter, for `add`. Blocks; any thread. Raises ModelUnavailable when it is not for this model."""
        ...

    def add(self, key: str, weights: Any) -> None:
        """From the next step on, rows whose `adapter` is `key` run with it. Between two steps."""
        ...

    def drop(self, key: str) -> None:
        """Give its memory back. Between two steps. Unknown keys are ignored."""
        ...


class DraftAsk(NamedTuple):
    """Guesses that a sequence could use: at most `most` tokens after `tokens`."""

    seq_id: int
    tokens: Sequence[int]
    most: int
    sampling: Sampling
    seed: int
    prompt_tokens: int = 0
    """So many of `tokens` are the sequence's prompt."""
    predicted: Sequence[int] = ()
    """What its caller thinks that it says."""


class Drafter(Protocol):
    """Guesses what sequences will say next. Called on the engine's thread, before a step is planned."""

    @property
    def device_ns(self) -> int:
        """Device time that guessing has used so far, which no caller pays for."""
        ...

    @property
    def device_nano(self) -> int:
        """What that time cost, in nano-dollars."""
        ...

    def propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        """For each ask up to `most` tokens; fewer or none where it has no good guess. It must not raise."""
        ...

    def forget(self, seq_id: int) -> None:
        """The sequence has ended or was preempted. Unknown ids are ignored."""
        ...

    def sleep(self) -> None:
        """Give back what it holds of a device, until `wake`. No sequence is left."""
        ...

    def wake(self) -> None:
        """Raises OutOfMemory, and goes on sleeping."""
        ...

    def close(self) -> None: ...


class TextWatch(Protocol):
    """Turns one sequence's tokens into text as they come: whole characters only, stop strings held back."""

    is_armed: bool
    """False while no stop string ends the answer; set before a push."""

    def push(self, token: int) -> str:
        """The text that became certain with this token; may be empty."""
        ...

    @property
    def is_stopped(self) -> bool:
        """A stop string has appeared; the text pushed out so far ends right before it."""
        ...

    @property
    def stop(self) -> str | None:
        """That stop string, once `is_stopped`."""
        ...

    def flush(self) -> str:
        """At the end without a stop string: whatever was held back. Incomplete bytes become U+FFFD."""
        ...


@dataclass(frozen=True, slots=True)
class FillMarks:
    """The tokens by which a model is asked for what is missing in the middle of a text."""

    prefix: int
    suffix: int
    middle: int | None = None
    """What the prompt ends with; None where it ends with the text before the gap."""
    ends: frozenset[int] = frozenset()
    """What such answers end with beside the model's own ends."""
    is_joined: bool = False
    """The text behind the gap is no new text, so it does not begin with the space that the tokenizer gives those."""


@dataclass(frozen=True, slots=True)
class Marks:
    """How a model writes what of its answers is no content."""

    call_format: str | None = None
    """The format of its tool calls, one of `text/calls/families.py`; None where its template tells of none."""
    thoughts: tuple[str, str] | None = None
    """What its thoughts stand between."""
    thought_ids: ThoughtIds | None = None
    """The tokens that thoughts stand between, whoever tells them from content."""
    special: tuple[str, ...] = ()
    """Texts of the special tokens."""
    fill: FillMarks | None = None
    """None where the vocabulary has no tokens to ask for a middle with."""
    guard: str | None = None
    """The family of guards that its template was written for, one of `text/guards.py`."""
    response_template: str | None = None
    """How its answers are to be read, as its files tell (`text/calls/response_template.py`); JSON, and known."""
    moment: Callable[[], str] | None = None
    """What its chat template would tell of the time now, such as the date; None where it tells nothing of it."""


NO_MARKS = Marks()


class Tokenizer(Protocol):
    """Text to token ids and back, for one model. Methods may be called from any thread."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def encode_whole(
        self,
        text: str,
        second: str | None = None,
        *,
        most_tokens: int | None = None,
        most_second: int | None = None,
    ) -> tuple[list[int], int | None]:
        """One text, or two as a model is taught to compare them, with the special tokens around them; and where
        the second one begins, for a model that tells them apart. The second one is cut to `most_second` tokens of its
        own; beyond `most_tokens` the longer one is cut first."""
        ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Messages as the model's own prompt text.

        Raises BadRequest when the model has no chat template, or when its template refuses the messages.
        """
        ...

    def watch(self, stop: Sequence[str] = (), shown: Sequence[str] = ()) -> TextWatch:
        """Of special tokens, which are no text, those that `shown` names are told all the same."""
        ...

    @property
    def marks(self) -> Marks: ...

    def begins_with_thoughts(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends amid the model's thoughts, so that an answer begins with them unmarked."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for, which may be part of a character; empty for special tokens."""
        ...

    def compile_grammar(self, spec: GrammarSpec) -> None:
        """Make `spec` ready for `grammar`. May take a while: not for the HTTP loop.

        Raises BadRequest that names what is wrong with it, or what of it can't be enforced.
        """
        ...

    def grammar(self, spec: GrammarSpec, prompt: Sequence[int] = ()) -> GrammarState:
        """A fresh state of a grammar. Quick once it was compiled. `prompt` tells whether the model is to think first,
        in which case the grammar begins after its thoughts."""
        ...


DeltaSink = Callable[[Delta], None]
"""Called on the HTTP loop with each delta of one sequence, in order."""


class Joint(Protocol):
    """Sinks of one kind that are told together what each step brings them, a token each, until they part."""

    def hear(self, texts: Sequence[str], tokens: Sequence[int]) -> bool:
        """What a step has brought each. False, and nothing is heard, where each has to be told alone."""
        ...

    def part(self) -> None:
        """They are told alone from now on."""
        ...


class JointSink(Protocol):
    """A DeltaSink that can be told together with others that have the same `together`."""

    def __call__(self, delta: Delta) -> None: ...

    def together(self, sinks: Sequence[Any]) -> Joint:
        """These, itself among them."""
        ...


class ReadySink(Protocol):
    """A DeltaSink of which several can get ready together for the last words that each is about to be told."""

    def __call__(self, delta: Delta) -> None: ...

    def get_ready(self, told: Sequence[tuple[Any, Delta]]) -> None:
        """For these, itself among them. Raises nothing."""
        ...


class EngineLoad(msgspec.Struct, frozen=True):
    """How busy an engine is, as advice: acting on it is the engine's own business."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    steps: int = 0
    preemptions: int = 0
    operator_ns: int = 0
    """Device time that no caller pays for."""
    callers_nano: int = 0
    """What sequences have cost so far; with the next two all that the device did for this model."""
    operator_nano: int = 0
    probe_nano: int = 0
    """What the check of a freshly loaded model cost."""
    hung_s: float = 0.0
    """How long a step has been running that should have ended; 0 while none has."""
    prefix_query_tokens: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_hit_tokens: int = 0
    """Of those, the ones that did not have to be computed."""
    prefix_known_blocks: int = 0
    prefix_evicted_blocks: int = 0
    host_hit_tokens: int = 0
    """Of `prefix_hit_tokens`, those whose keys and values came back from host memory."""
    host_blocks_used: int = 0


class EngineClient(Protocol):
    """The door to an engine loop. All calls are made on the HTTP loop, and return at once."""

    def submit(self, spec: SequenceSpec, sink: DeltaSink) -> int:
        """Queue a sequence; returns its id. Raises Overloaded when the queue is full or the engine stops."""
        ...

    def cancel(self, seq_id: int) -> None:
        """Stop a sequence within two steps. Unknown or ended ids are ignored. A last delta is still delivered."""
        ...

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        """Raise `SequenceSpec.held_tokens`: so many tokens of the sequence, from its first one on, are paid for.

        A smaller number than before changes nothing. With `is_final` no more will come: the sequence ends with
        `length` where they are used up. Unknown or ended ids are ignored.
        """
        ...

    def load(self) -> EngineLoad: ...

    @property
    def live(self) -> int:
        """Sequences submitted and not yet ended."""
        ...

    def resize_kv(self, blocks: int) -> None:
        """Hand the runner another KV lease between two steps."""
        ...

    async def sleep(self, *, drain_s: float = 0.0) -> None:
        """Let what runs end for up to `drain_s`, cut the rest, and give back what is held of the device.

        Until `wake` nothing is let in. Raises what the runner raises, and then it goes on as before.
        """
        ...

    async def wake(self) -> None:
        """Be as before `sleep`, but for the prefix cache, which is empty. Raises OutOfMemory, and sleeps on."""
        ...

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Let what runs end for up to `drain_s`, cut the rest, give everything back. Idempotent."""
        ...
