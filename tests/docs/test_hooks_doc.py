"""docs/hooks.md says what the hooks are, and its examples are plugins that load."""

import re
from pathlib import Path

import pytest

from llmhost.core.request import Caller, GenerationRequest, Kind
from llmhost.hooks.call import ask
from llmhost.hooks.check import hook_arguments
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import RULES
from llmhost.hooks.spec import Kind as HookKind

DOC = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^### `(.+?)`\n(.*?)(?=^### |\Z)", DOC, re.MULTILINE | re.DOTALL))
PLUGIN = re.compile(r"```python\n((?:(?!```).)*?@hookimpl.*?)```", re.DOTALL)


def test_every_hook_is_documented_with_its_arguments_in_order_and_no_other():
    assert list(SECTIONS) == [f"{hook}({', '.join(hook_arguments(hook))})" for hook in RULES]


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_argument_is_explained(heading):
    hook = heading.partition("(")[0]

    explained = re.findall(r"^- `(\w+)`: \w", SECTIONS[heading], re.MULTILINE)

    assert tuple(explained) == hook_arguments(hook)


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_hook_says_when_it_is_called_what_it_returns_and_what_a_failure_means(heading):
    section, rule = SECTIONS[heading], RULES[heading.partition("(")[0]]
    when, returns, failure = re.split(
        r"\*\*When:\*\*|\*\*Returns:\*\*|\*\*On failure:\*\*", section
    )[1:]

    assert when.strip()
    for opinion in rule.opinions:
        assert opinion.__name__ in returns or opinion is str or opinion is bool
    if rule.kind is not HookKind.ASK:
        assert "nothing" in returns
    if rule.raises is not None:
        assert f"`{rule.raises.code}`" in failure


def loaded(text: str, folder: Path, name: str) -> Plugins:
    (folder / f"{name}.py").write_text(text)
    return Plugins.load(folder=folder, packages=False)


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_example_is_a_plugin_for_its_hook(heading, tmp_path):
    (example,) = PLUGIN.findall(SECTIONS[heading])

    assert loaded(example, tmp_path, "example").has(heading.partition("(")[0])


async def test_the_first_plugin_does_what_its_test_says(tmp_path):
    example = PLUGIN.findall(DOC)[0]
    plugins = loaded(example, tmp_path, "office_hours")
    request = GenerationRequest(request_id="r", kind=Kind.CHAT, model="m", max_tokens=501)

    answer = await ask(
        plugins, "admit_request", request=request, caller=Caller(key_id="k", org="interns")
    )

    assert answer is not None
    assert answer.opinion.code == "answer_too_long"
    assert len(example.strip().splitlines()) <= 20
