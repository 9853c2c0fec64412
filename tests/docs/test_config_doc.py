"""models.toml and docs/config.md say what the schema says, about every key."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from llmhost.config.convert import describe
from llmhost.config.describe import key_docs
from llmhost.config.environment import OTHER_VARIABLES, TABLES
from llmhost.config.load import DEFAULT_MODELS, FLAGS, load
from llmhost.config.schema import Settings
from llmhost.config.schema.cache import ModelCacheSettings
from llmhost.config.schema.engines import FakeOptions, LlamaOptions, TorchOptions
from llmhost.config.schema.limits import ModelLimitSettings
from llmhost.config.schema.models import ModelSpec, SpeculationSettings
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.section import Section
from llmhost.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "models.toml"
DOC = (ROOT / "docs/config.md").read_text()

HEADINGS: dict[str, type[Section]] = {
    **{f"[{table}]": section for table, section in TABLES.items()},
    "[models.NAME]": ModelSpec,
    "[models.NAME.price]": PriceSettings,
    "[models.NAME.limits]": ModelLimitSettings,
    "[models.NAME.cache]": ModelCacheSettings,
    "[models.NAME.speculation]": SpeculationSettings,
    '[models.NAME.options] of engine "torch"': TorchOptions,
    '[models.NAME.options] of engine "llama"': LlamaOptions,
    '[models.NAME.options] of engine "fake"': FakeOptions,
}

NO_DEFAULT_SHOWN = (
    *("adapters", "aliases", "cache", "guard_labels", "limits", "options", "speculation"),
)
"""Keys of a model whose line in the shipped file is an example, or a table."""


def uncommented(text: str) -> str:
    return re.sub(r"^#(?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)


def default(field: msgspec.structs.FieldInfo) -> object:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return field.default_factory()


def test_the_shipped_file_says_what_would_hold_without_it():
    assert load(SHIPPED, {}, {}).settings == Settings(models=DEFAULT_MODELS)


def test_the_shipped_file_still_loads_with_every_line_in_force(tmp_path: Path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "models.toml").write_text(uncommented(SHIPPED.read_text()))
    loaded = load(tmp_path / "models.toml", {}, {})

    set_by_file = {key for key, origin in loaded.origins.items() if origin.kind == "file"}
    unset = set(loaded.origins) - set_by_file
    assert {
        key for key in unset if key.partition(".")[0] != "models" or key.startswith("models.tiny.")
    } == set()
    assert {key for key in unset if key.startswith("models.echo.options")} == set()


def test_a_commented_line_shows_the_default_unless_there_is_none(tmp_path: Path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "models.toml").write_text(uncommented(SHIPPED.read_text()))
    shown = load(tmp_path / "models.toml", {}, {}).settings

    for table, section in TABLES.items():
        for field in msgspec.structs.fields(section):
            if field.default is not None:
                assert getattr(getattr(shown, table), field.name) == default(field), field.name
    for field in msgspec.structs.fields(ModelSpec):
        if field.default is not None and field.name not in NO_DEFAULT_SHOWN:
            assert getattr(shown.models["tiny"], field.name) == default(field), field.name
    for field in msgspec.structs.fields(SpeculationSettings):
        if field.default is not None:
            assert getattr(shown.models["tiny"].speculation, field.name) == default(field)


def test_every_key_stands_in_the_shipped_file_below_its_documentation():
    text = SHIPPED.read_text()
    docs = key_docs()

    for struct in HEADINGS.values():
        for key, doc in docs[struct.__name__].items():
            flat = re.sub(r"\n# ", " ", text)
            assert doc in flat, f"{struct.__name__}.{key}: {doc}"
            assert re.search(rf"^#?(\[models\.\w+\.)?{key}(\]| = )", text, re.MULTILINE), key


def section_of(heading: str) -> list[str]:
    _, _, rest = DOC.partition(f"### {heading}\n")
    assert rest, f"docs/config.md has no heading {heading}"
    return re.split(r"^##", rest, maxsplit=1, flags=re.MULTILINE)[0].splitlines()


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_key_is_documented_with_type_default_and_meaning(heading: str):
    section = HEADINGS[heading]
    docs = key_docs()[section.__name__]
    rows = [line for line in section_of(heading) if line.startswith("| `")]

    expected = []
    for field in msgspec.structs.fields(section):
        value = default(field)
        shown = "absent" if value is None else "as below"
        if value is not None and not isinstance(value, Section):
            shown = f"`{json.dumps(value)}`"
        cells = [f"`{field.name}`", describe(field.type), shown]
        if heading.strip("[]") in TABLES:
            cells.append(f"`LLMHOST_{heading.strip('[]').upper()}_{field.name.upper()}`")
        expected.append(f"| {' | '.join([*cells, docs[field.name]])} |")
    assert rows == expected


def test_other_variables_and_flags_are_documented():
    for name, meaning in OTHER_VARIABLES.items():
        assert f"| `{name}` | {meaning} |" in DOC
    for flag in FLAGS.values():
        assert f"`{flag}`" in DOC


EXAMPLES = {
    "models.toml: [models.qwen] has no key": '[models.qwen]\naliasses = ["a"]',
    "models.toml: [server] port is": "[server]\nport = 99999",
    "models.toml: line 3": "\n[server]\nport = \n",
    "models.toml: [models.qwen.price]": "[models.qwen.price]\ninput = 0.1",
    "models.toml: [models.qwen] aliases": '[models.qwen]\naliases = ["tiny"]\n[models.tiny]',
    "LLMHOST_LIMITS_BURST_REQUESTS": {"LLMHOST_LIMITS_BURST_REQUESTS": "5"},
    "The environment variable": {"LLMHOST_SERVER_PROT": "1"},
}


def test_the_errors_in_the_documentation_are_the_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```text\n(.*?)```", DOC, re.DOTALL)
    assert block is not None
    documented = block[1].splitlines()

    assert len(documented) == len(EXAMPLES)
    for line, (start, cause) in zip(documented, EXAMPLES.items(), strict=True):
        assert line.startswith(start)
        text, environ = (cause, {}) if isinstance(cause, str) else ("", cause)
        (tmp_path / "models.toml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load(None, environ, {})
        assert caught.value.message == line


def test_the_example_in_the_documentation_loads(tmp_path: Path):
    block = re.search(r"```toml\n(.*?)```", DOC, re.DOTALL)
    assert block is not None
    (tmp_path / "models.toml").write_text(block[1])

    loaded = load(tmp_path / "models.toml", {}, {})

    assert loaded.settings.server.port == 9000
    assert loaded.settings.models["qwen"].aliases == ("gpt-4o-mini",)
