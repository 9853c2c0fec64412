"""The schema in words."""

import json
from pathlib import Path

from llmhost.config.describe import explain, json_schema, key_docs
from llmhost.config.environment import Variables, read_variables
from llmhost.config.load import load
from llmhost.config.schema import Settings
from llmhost.config.schema.engines import ENGINE_OPTIONS
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.section import Section
from llmhost.core.errors import ConfigError

FILE = """
[server]
port = 9000
[models."qwen2.5"]
engine = "fake"
price = {input = "1"}
[models."qwen2.5".options]
vocab = 32
"""


def structs() -> list[type[Section]]:
    fixed = [type(getattr(Settings(), name)) for name in Settings.__struct_fields__[:-1]]
    return [*fixed, ModelSpec, PriceSettings, *ENGINE_OPTIONS.values()]


def test_every_key_has_a_docstring():
    docs = key_docs()

    for struct in structs():
        assert list(docs[struct.__name__]) == list(struct.__struct_fields__)
        assert all(doc.endswith(".") for doc in docs[struct.__name__].values())


def test_each_key_is_explained_with_value_origin_and_meaning(tmp_path: Path):
    path = tmp_path / "node.toml"
    path.write_text(FILE)
    explained = {row.key: row for row in explain(load(path, {}, {}))}

    port = explained["server.port"]
    assert (port.value, port.origin, port.takes) == (
        9000,
        ("file", str(path)),
        "a whole number from 0 to 65535",
    )
    assert port.doc.startswith("TCP port; 0 takes a free one")
    assert explained["models.qwen2.5.price.input"].value == "1"
    assert explained["models.qwen2.5.price.output"].value == "0"
    assert explained["models.qwen2.5.options.vocab"].value == 32
    assert explained["models.qwen2.5.options.token_delay_ms"].origin.kind == "default"


def test_a_model_without_a_price_is_explained_too(tmp_path: Path):
    path = tmp_path / "node.toml"
    path.write_text("[models.a]\n")
    explained = {row.key: row for row in explain(load(path, {}, {}))}

    assert explained["models.a.price"].value is None
    assert explained["models.a.options.dtype"].value == "auto"


def test_the_json_schema_describes_every_key_and_resolves_every_reference():
    schema = json_schema()
    text = json.dumps(schema)

    for struct in structs():
        part = schema["$defs"][struct.__name__]
        assert part["additionalProperties"] is False
        assert list(part["properties"]) == list(struct.__struct_fields__)
        assert all("description" in prop for prop in part["properties"].values())
    for name in text.split('"#/$defs/')[1:]:
        assert name.split('"')[0] in schema["$defs"]


def test_the_json_schema_ties_options_to_the_engine():
    rules = json_schema()["$defs"]["ModelSpec"]["allOf"]
    targets = {
        rule["if"]["properties"]["engine"]["const"]: rule["then"]["properties"]["options"]["$ref"]
        for rule in rules
    }

    assert targets == {
        "torch": "#/$defs/TorchOptions",
        "llama": "#/$defs/LlamaOptions",
        "fake": "#/$defs/FakeOptions",
    }


def test_variables_of_the_command_line_are_read_in_one_place():
    environ = {
        "LLMHOST_URL": "http://a",
        "LLMHOST_ADMIN_TOKEN": "t",
        "LLMHOST_API_KEY": "k",
        "LLMHOST_TRACE_HOOKS": "1",
    }

    assert read_variables(environ) == Variables("http://a", "t", "k", trace_hooks=True)
    assert read_variables({"LLMHOST_URL": ""}) == Variables()


def test_a_switch_that_is_neither_on_nor_off_is_refused():
    try:
        read_variables({"LLMHOST_TRACE_HOOKS": "maybe"})
    except ConfigError as error:
        assert error.message == "LLMHOST_TRACE_HOOKS is 'maybe' but must be 1 or 0."
    else:
        raise AssertionError("accepted")
