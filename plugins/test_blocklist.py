import shutil
from pathlib import Path

import pytest

import blocklist
from llmhost.hooks.registry import Plugins
from llmhost.testing import fake_chat_words, make_host


@pytest.mark.parametrize(
    ("text", "status"),
    [("an ExampleBadWord!", 400), ("examplebadwords", 200), ("fine", 200)],
)
async def test_whole_words_are_refused_whatever_their_case(text: str, status: int) -> None:
    async with make_host(plugins=[blocklist]) as host:
        response = await host.chat(text, max_tokens=4)

    assert response.status_code == status
    if status == 400:
        assert response.json()["error"]["code"] == "blocked_word"


@pytest.mark.parametrize("text", ["a-b", "xa-b a-b", "(c++)", "one two", "x two", "a-b", "two"])
def test_any_of_the_words_is_found(text: str) -> None:
    assert blocklist.pattern_of(["a-b", "C++", "two"]).search(text) is not None


@pytest.mark.parametrize("text", ["xa-b", "a-bx", "a-b_", "_two", "twofold", "c+", "", "1two2"])
def test_parts_of_other_words_are_not_found(text: str) -> None:
    assert blocklist.pattern_of(["a-b", "C++", "two"]).search(text) is None
    assert blocklist.pattern_of([]).search(text) is None


async def test_a_blocked_word_ends_the_answer_before_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = fake_chat_words([{"role": "user", "content": "hello"}], 8)
    monkeypatch.setattr(blocklist, "BLOCKED", blocklist.pattern_of([whole.split()[5]]))

    async with make_host(plugins=[blocklist]) as host:
        choice = (await host.chat("hello", max_tokens=8)).json()["choices"][0]

    assert choice["finish_reason"] == "content_filter"
    assert whole.split()[5] not in choice["message"]["content"]


def test_a_text_file_beside_the_plugin_replaces_its_words(tmp_path: Path) -> None:
    shutil.copy(blocklist.__file__, tmp_path)
    (tmp_path / "blocklist.txt").write_text("# ours\n\nforbidden\n")

    plugins = Plugins.load(folder=tmp_path, packages=False)
    check_output = plugins.implementations("check_output")[0].function

    assert check_output("this is forbidden") is not None
    assert check_output("examplebadword") is None
