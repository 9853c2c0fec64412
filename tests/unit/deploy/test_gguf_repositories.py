"""Which of a repository's GGUF files is meant."""

import pytest

from llmhost.config.sources import parse_hub_source
from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.hub import choose_files

NAMES = (
    ".gitattributes",
    "README.md",
    "config.json",
    "q-Q4_K_M.gguf",
    "q-UD-Q4_K_M.gguf",
    "q-Q8_0.gguf",
    "mmproj-F16.gguf",
    "BF16/q-BF16-00002-of-00002.gguf",
    "BF16/q-BF16-00001-of-00002.gguf",
)


def chosen(source: str, names: tuple[str, ...] = NAMES) -> list[str]:
    return choose_files(names, parse_hub_source(source))


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("hf:a/b:Q8_0", ["q-Q8_0.gguf"]),
        ("hf:a/b:q8_0", ["q-Q8_0.gguf"]),
        ("hf:a/b:Q4_K_M", ["q-Q4_K_M.gguf"]),
        ("hf:a/b:UD-Q4_K_M", ["q-UD-Q4_K_M.gguf"]),
        ("hf:a/b@main:q-Q8_0.gguf", ["q-Q8_0.gguf"]),
        (
            "hf:a/b:BF16",
            ["BF16/q-BF16-00001-of-00002.gguf", "BF16/q-BF16-00002-of-00002.gguf"],
        ),
        (
            "hf:a/b:BF16/q-BF16-00001-of-00002.gguf",
            ["BF16/q-BF16-00001-of-00002.gguf", "BF16/q-BF16-00002-of-00002.gguf"],
        ),
        ("hf:a/b-GGUF", ["q-Q4_K_M.gguf"]),
    ],
)
def test_one_file_is_fetched_with_all_its_parts_and_nothing_else(
    source: str, files: list[str]
) -> None:
    assert chosen(source) == files


def test_the_only_model_of_a_gguf_repository_needs_no_name() -> None:
    assert chosen("hf:a/b-gguf", ("config.json", "q-Q5_0.gguf")) == ["q-Q5_0.gguf"]


@pytest.mark.parametrize(
    ("source", "names", "said"),
    [
        ("hf:a/b:Q2_K", NAMES, "no GGUF files for 'Q2_K'; there is: BF16, Q4_K_M, Q8_0, UD-Q4_K_M"),
        ("hf:a/b:Q8_0", ("README.md",), "has no GGUF file"),
        (
            "hf:a/b-GGUF",
            ("q-Q5_0.gguf", "q-Q8_0.gguf"),
            "name one of them as in 'hf:a/b-GGUF:Q5_0'",
        ),
        ("hf:a/b", ("q-Q5_0.gguf", "q-Q8_0.gguf"), "Name one as in 'hf:a/b:Q5_0'"),
    ],
)
def test_who_names_none_is_told_what_there_is(
    source: str, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        chosen(source, names)

    assert said in refused.value.message


def test_safetensors_come_first_where_no_file_is_named() -> None:
    names = ("config.json", "model.safetensors", "q-Q8_0.gguf")

    assert chosen("hf:a/b", names) == ["config.json", "model.safetensors"]
    assert chosen("hf:a/b:Q8_0", names) == ["q-Q8_0.gguf"]
