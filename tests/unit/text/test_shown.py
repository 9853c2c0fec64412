"""Special tokens that mark calls and thoughts: from a model's ids, through its tokenizer, to the calls."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.text.marked import tokenizer_of

from llmhost.core.thoughts import ThoughtIds
from llmhost.pipeline.reading import Reading
from llmhost.text.calls.families import BY_NAME
from llmhost.text.tokenizer import FileTokenizer

SAID = {
    "hermes": '<think>Hm.</think>\n\nOk.\n<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>',
    "mistral": 'Ok.[TOOL_CALLS]f[ARGS]{"a": "ü"}',
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Ok.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "ü"}',
    "kimi_k2": "Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
    '{"a": "ü"}<|tool_call_end|><|tool_calls_section_end|>',
    "deepseek_v31": 'Ok.<\uff5ctool▁calls▁begin\uff5c><\uff5ctool▁call▁begin\uff5c>f<\uff5ctool▁sep\uff5c>{"a": "ü"}'
    "<\uff5ctool▁call▁end\uff5c><\uff5ctool▁calls▁end\uff5c>",
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileTokenizer]:
    return {name: tokenizer_of(name, tmp_path_factory.mktemp(name)) for name in SAID}


def reading_of(tokenizer: FileTokenizer) -> Reading:
    marks = tokenizer.marks
    assert marks.call_format is not None
    return Reading(BY_NAME[marks.call_format], marks.thoughts, False, {}, marks.thought_ids)


@pytest.mark.parametrize("name", SAID)
def test_what_a_model_says_in_special_tokens_is_read(
    name: str, tokenizers: dict[str, FileTokenizer]
) -> None:
    tokenizer = tokenizers[name]
    reading = reading_of(tokenizer)
    ids = tokenizer.encode(SAID[name], add_special_tokens=False)
    watch, reader = tokenizer.watch((), reading.shown), reading.reader()
    pieces = [piece for token in ids for piece in reader.push(watch.push(token))]
    pieces += [*reader.push(watch.flush()), *reader.finish()]

    assert tokenizer.marks.call_format == name
    assert len(ids) < len(SAID[name].encode())
    assert "".join(p.text for p in pieces if p.call is None and not p.is_thought).strip() == "Ok."
    assert json.loads("".join(p.text for p in pieces if p.call == 0)) == {"a": "ü"}
    assert [p.name for p in pieces if p.name] == ["f"]
    thought = "".join(p.text for p in pieces if p.is_thought)
    assert thought == ("Hm." if name in ("hermes", "harmony") else "")
    assert reader.is_complete


def test_special_tokens_are_no_text_unless_they_are_shown(
    tokenizers: dict[str, FileTokenizer],
) -> None:
    tokenizer = tokenizers["mistral"]
    ids = tokenizer.encode("a[TOOL_CALLS]b[ARGS]c<eos>", add_special_tokens=False)

    def told(*shown: str) -> str:
        watch = tokenizer.watch((), shown)
        return "".join(map(watch.push, ids)) + watch.flush()

    assert told() == "abc"
    assert told("[ARGS]") == "ab[ARGS]c"
    assert told("[TOOL_CALLS]", "[ARGS]", "a", "[NONE]") == "a[TOOL_CALLS]b[ARGS]c"


@given(stop=st.sampled_from(["[TOOL_CALLS]", "CALLS]b", "a[T", "b[ARGS]c", "[ARGS]é"]))
def test_stop_strings_see_what_is_shown(stop: str, tokenizers: dict[str, FileTokenizer]) -> None:
    tokenizer, text = tokenizers["mistral"], "éa[TOOL_CALLS]b[ARGS]é"
    watch = tokenizer.watch((stop,), ("[TOOL_CALLS]", "[ARGS]"))
    said = "".join(map(watch.push, tokenizer.encode(text, add_special_tokens=False)))
    said += watch.flush()

    assert said == text.partition(stop)[0]
    assert watch.is_stopped == (stop in text)


def test_thoughts_are_counted_by_the_tokens_of_their_marks(
    tokenizers: dict[str, FileTokenizer],
) -> None:
    hermes, harmony = tokenizers["hermes"], tokenizers["harmony"]
    think, end = hermes.encode("<think></think>", add_special_tokens=False)

    assert hermes.marks.thought_ids == ThoughtIds((think,), (end,))
    assert tokenizers["mistral"].marks.thought_ids is None
    counted = harmony.marks.thought_ids
    assert counted is not None
    ids = harmony.encode(SAID["harmony"], add_special_tokens=False)
    assert counted.count(ids) == len("analysis") + len("Hm.") + 3


def test_a_prompt_may_begin_the_thoughts(tokenizers: dict[str, FileTokenizer]) -> None:
    hermes = tokenizers["hermes"]

    def begins(prompt: str) -> bool:
        return hermes.begins_with_thoughts(hermes.encode(prompt))

    assert begins("Hi.<think>\n")
    assert not begins("Hi.<think>\n\n</think>\n\n")
    assert not begins("Hi.")


@pytest.mark.parametrize("name", SAID)
def test_a_sequence_that_moves_goes_on_showing_where_it_was(
    name: str, tokenizers: dict[str, FileTokenizer]
) -> None:
    tokenizer = tokenizers[name]
    shown = reading_of(tokenizer).shown
    ids = tokenizer.encode(SAID[name], add_special_tokens=False)
    for moved in range(0, len(ids), 7):
        before, after = tokenizer.watch(("zz",), shown), tokenizer.watch(("zz",), shown)
        said = "".join(map(before.push, ids[:moved]))
        for token in ids[:moved]:  # as an imported sequence does
            after.push(token)
        said += "".join(map(after.push, ids[moved:])) + after.flush()

        assert said == SAID[name]
