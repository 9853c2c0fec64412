"""A real model whose files tell how its answers are to be read, asked by OpenAI's client beside its twin without."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node
from tests.unit.text.answer_templates import JSON_CALLS

from llmhost.engines import builtin
from llmhost.engines.builtin.corpus import tool_dialogues, tools

pytestmark = pytest.mark.bars

DIALOGUES = tool_dialogues()[:: len(tool_dialogues()) // 12]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("told")
    shutil.copytree(Path(builtin.__file__).parent / "tiny", folder / "model")
    config = folder / "model" / "tokenizer_config.json"
    told = {**json.loads(config.read_text()), "response_template": JSON_CALLS}
    config.write_text(json.dumps(told))
    settings = f"""
[models.known]
source = "builtin:tiny"
[models.told]
source = "{folder / "model"}"
tool_format = "response_template"
"""
    made = Node(folder, settings)
    yield made.start()
    made.close()


def said(client: OpenAI, model: str, dialogue: Any, *, is_stream: bool) -> tuple[Any, ...]:
    body: Any = {
        "model": model,
        "temperature": 0,
        "messages": [{"role": "user", "content": dialogue.questions[0]}],
        "tools": [tools()[name] for name in dialogue.tools],
    }
    if is_stream:
        with client.chat.completions.stream(**body) as stream:
            list(stream)
            [choice] = stream.get_final_completion().choices
    else:
        [choice] = client.chat.completions.create(**body).choices
    calls = [
        (call.function.name, json.loads(call.function.arguments))
        for call in choice.message.tool_calls or ()
    ]
    return choice.message.content or "", calls, choice.finish_reason


@pytest.mark.parametrize("is_stream", [False, True])
def test_it_says_what_its_twin_says(
    node: Node, is_stream: bool, bar: Callable[[str], None]
) -> None:
    with OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        for dialogue in DIALOGUES:
            told = said(client, "told", dialogue, is_stream=is_stream)
            assert told == said(client, "known", dialogue, is_stream=False)
            assert told[2] == "tool_calls"
    how = "streamed" if is_stream else "whole"
    bar(f"an answer template of a model's own: {len(DIALOGUES)} dialogues, {how}, 0 differ")
