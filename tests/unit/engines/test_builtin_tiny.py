"""The built-in model: its files, its words, and the answers that other tests take for granted."""

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

from llmhost.engines.builtin import corpus, drills, variety

TINY = Path(corpus.__file__).parent / "tiny"
USER = {"role": "user", "content": "Hello"}
WEATHER = corpus.tools()["get_weather"]


def as_jinja2_ships(template: str) -> jinja2.Template:
    """The plainest sandbox a caller could have; its own `tojson` sorts keys, ours need not."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)


@pytest.fixture(scope="module")
def template() -> jinja2.Template:
    return as_jinja2_ships((TINY / "chat_template.jinja").read_text("utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


def calling(arguments: object, content: object = None) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    tool_calls = [{"id": "call_1", "type": "function", "function": function}]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls}


# The corpus


def test_the_corpus_has_the_breadth_it_promises() -> None:
    calls = [k for k in corpus.known_answers() if k.answer.endswith("</tool_call>")]
    results = [k for k in corpus.known_answers() if k.messages[-1]["role"] == "tool"]
    from_llmhost = len(corpus.pairs()) - len(small_talk())
    assert from_llmhost >= 300
    assert len(small_talk()) >= 60
    assert len(calls) + len(results) >= 80
    assert len(corpus.tools()) == 8
    assert sum(len(pair.answer.split()) > 100 for pair in corpus.pairs()) >= 5


def small_talk() -> list[corpus.Pair]:
    return list(itertools.dropwhile(lambda p: p.questions[0] != "Hello", corpus.pairs()))


def test_no_two_answers_hang_on_the_same_question() -> None:
    asked = [
        re.sub(r"[^\w -]", "", question.lower())
        for pair in (*corpus.pairs(), *corpus.unknown())
        for question in pair.questions
    ]
    assert sorted(asked) == sorted(set(asked))


def test_known_answers_are_distinct_and_come_in_the_same_order_each_time() -> None:
    first, second = corpus.known_answers(), corpus.known_answers()
    assert first == second
    assert len({json.dumps([k.messages, k.tools]) for k in first}) == len(first)


def test_some_answers_need_several_bytes_for_a_character() -> None:
    text = "".join(pair.answer for pair in corpus.pairs())
    assert all(character in text for character in "é€中文🚀")


def test_a_line_out_of_form_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "running.txt").write_text("Q: Why?\nbecause\n")
    monkeypatch.setattr(corpus, "ANSWERS", tmp_path)
    with pytest.raises(corpus.CorpusError, match=r"running\.txt:2"):
        corpus.pairs.__wrapped__()


def test_every_epoch_holds_every_answer() -> None:
    rng = random.Random(5)
    learnt = {
        message["content"]
        for conversation in variety.epoch(rng)
        for message in conversation.messages
        if message["role"] == "assistant"
    }
    assert {known.answer for known in corpus.known_answers()} <= learnt


# The files


def test_the_weights_fit_in_8_mib_and_have_the_shapes_of_a_small_llama() -> None:
    path = TINY / "model.safetensors"
    config = json.loads((TINY / "config.json").read_text())
    with safe_open(path, framework="np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        kinds = {weights.get_slice(name).get_dtype() for name in shapes}
        metadata = weights.metadata()
    assert path.stat().st_size < 8 * 2**20
    assert metadata == {"format": "pt"}
    assert kinds == {"BF16"}
    assert "lm_head.weight" not in shapes
    assert shapes["model.embed_tokens.weight"] == [2048, 256]
    assert shapes["model.layers.3.self_attn.q_proj.weight"] == [256, 256]
    assert shapes["model.layers.3.self_attn.k_proj.weight"] == [128, 256]
    assert shapes["model.layers.3.mlp.down_proj.weight"] == [256, 768]
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["num_hidden_layers"], config["head_dim"]) == (4, 64)
    assert config["max_position_embeddings"] == 2048


def test_every_matrix_has_rows_that_a_k_quant_block_divides() -> None:
    with safe_open(TINY / "model.safetensors", framework="np") as weights:
        rows = [weights.get_slice(name).get_shape()[-1] for name in weights.keys()]  # noqa: SIM118
    assert all(length % 256 == 0 for length in rows)


def test_generation_ends_at_the_end_of_a_turn_or_of_the_text(tokenizer: Tokenizer) -> None:
    config = json.loads((TINY / "generation_config.json").read_text())
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    assert config["eos_token_id"] == ends


# The tokenizer


def test_the_tokenizer_has_2048_entries_and_every_byte(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 2048
    every_byte = bytes(range(256)).decode("latin-1")
    assert tokenizer.decode(tokenizer.encode(every_byte).ids) == every_byte


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_the_tokenizer_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_turn_marks_are_special_and_tool_marks_are_text(tokenizer: Tokenizer) -> None:
    marked = "<|im_start|><tool_call></tool_call><think></think><tool_response></tool_response>"
    ids = tokenizer.encode(marked).ids
    assert len(ids) == 7
    assert tokenizer.decode(ids) == marked.removeprefix("<|im_start|>")


def test_a_character_outside_ascii_takes_several_tokens(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("中").ids) == 3
    assert len(tokenizer.encode("🚀").ids) == 4


def test_auto_tokenizer_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(TINY)
    for text in (" lead", "a  b\n\n c", "<|im_start|>user\nétude 中文 🚀<|im_end|>\n<tool_call>"):
        assert auto.encode(text) == tokenizer.encode(text).ids
        assert auto.decode(auto.encode(text)) == text
    assert auto.eos_token == "<|im_end|>"


def test_a_resumed_training_keeps_the_tokenizer_of_its_weights(tmp_path: Path) -> None:
    from llmhost.engines.builtin.train import TOKENIZER_FILES, put_tokenizer

    put_tokenizer(tmp_path, TINY)
    put_tokenizer(TINY, TINY)

    for name in TOKENIZER_FILES:
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()


# The chat template


def test_messages_become_chatml(template: jinja2.Template) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_part_that_is_not_text_is_refused(template: jinja2.Template) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(jinja2.TemplateError, match="text only, not content of type image_url"):
        template.render(messages=messages)


def test_tools_are_listed_below_the_system_message(template: jinja2.Template) -> None:
    system = {"role": "system", "content": "Be kind."}
    text = template.render(messages=[system, USER], tools=[WEATHER, WEATHER["function"]])
    head = text.partition("<|im_end|>")[0]
    listed = head.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    assert head.startswith("<|im_start|>system\nBe kind.\n\n")
    assert [json.loads(line) for line in listed] == [WEATHER["function"]] * 2


@pytest.mark.parametrize("arguments", ['{"city": "Rome"}', {"city": "Rome"}])
@pytest.mark.parametrize(("content", "lead"), [(None, ""), ("I look.", "I look.\n")])
def test_a_call_renders_as_the_model_writes_it(
    template: jinja2.Template, arguments: object, content: str | None, lead: str
) -> None:
    text = template.render(messages=[USER, calling(arguments, content)])
    assert text.endswith(
        f"<|im_start|>assistant\n{lead}<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
    )


@pytest.mark.parametrize("arguments", ["", {}, None])
def test_a_call_without_arguments_still_renders_an_object(
    template: jinja2.Template, arguments: object
) -> None:
    text = template.render(messages=[USER, calling(arguments)])
    assert '{"name": "get_weather", "arguments": {}}' in text


def test_tool_results_in_a_row_share_one_user_turn(template: jinja2.Template) -> None:
    results = [{"role": "tool", "tool_call_id": "call_1", "content": c} for c in ("1", "2")]
    text = template.render(messages=[*results, USER])
    assert text == (
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n"
        "<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
    )


def test_calls_render_like_the_text_the_model_was_taught(template: jinja2.Template) -> None:
    for dialogue in corpus.tool_dialogues():
        taught = {"role": "assistant", "content": corpus.call_text(dialogue)}
        sent_back = corpus.assistant_calls(dialogue)
        assert template.render(messages=[taught]) == template.render(messages=[sent_back])


# The answers


@pytest.fixture(scope="module")
def torch_model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # the other core has a worker of its own
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


def test_every_token_of_the_known_answers_is_the_best_one_in_turn(torch_model: Any) -> None:
    from transformers import AutoTokenizer

    from llmhost.engines.builtin.verdict import teacher_forced

    verdict = teacher_forced(torch_model, AutoTokenizer.from_pretrained(TINY))
    assert verdict.known == len(corpus.known_answers())
    assert verdict.share >= 0.95, verdict
    assert verdict.first_percentile_gap > 2.0, verdict


def test_known_answers_are_generated_word_for_word(torch_model: Any) -> None:
    from transformers import AutoTokenizer

    from llmhost.engines.builtin.verdict import generate

    known = corpus.known_answers()[::12]  # the check above is of all of them
    answers = generate(torch_model, AutoTokenizer.from_pretrained(TINY), known, batch_size=16)
    wrong = [k.answer for k, text in zip(known, answers, strict=True) if text != k.answer]
    assert len(wrong) <= 0.05 * len(known), wrong


def test_values_that_training_never_saw_are_copied(torch_model: Any) -> None:
    from transformers import AutoTokenizer

    from llmhost.engines.builtin.copying import copied

    shares = copied(torch_model, AutoTokenizer.from_pretrained(TINY), drills.measured(5, 40))
    assert all(shares[kind].tokens > 0.75 for kind in ("number", "place", "name")), shares
