import shutil
from pathlib import Path

import pytest

import blocklist
from llmhost.core.request import LOCAL_CALLER, GenerationRequest, Kind
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins


def prompt(text: str) -> GenerationRequest:
    return GenerationRequest(request_id="r", kind=Kind.COMPLETION, model="m", prompts=(text,))


async def refuses(plugins: Plugins, text: str) -> bool:
    request = prompt(text)
    said = await ask(plugins, "check_input", request=request, caller=LOCAL_CALLER)
    again = await ask(plugins, "check_output", text=text, request=request, caller=LOCAL_CALLER)
    assert (said is None) == (again is None)
    return said is not None


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [("an ExampleBadWord!", True), ("examplebadwords", False), ("fine", False)],
)
async def test_whole_words_are_refused_whatever_their_case(text: str, is_refused: bool) -> None:
    assert await refuses(Plugins.of(blocklist), text) is is_refused


async def test_a_text_file_beside_the_plugin_replaces_its_words(tmp_path: Path) -> None:
    shutil.copy(blocklist.__file__, tmp_path)
    (tmp_path / "blocklist.txt").write_text("# ours\n\nforbidden\n")

    plugins = Plugins.load(folder=tmp_path, packages=False)

    assert await refuses(plugins, "this is forbidden")
    assert not await refuses(plugins, "examplebadword")
