"""Rules over several keys, and texts that must parse."""

import msgspec
import pytest

from llmhost.config.check import problems
from llmhost.config.load import where
from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec


def found(**tables: object) -> list[tuple[str, str]]:
    return list(problems(msgspec.convert(tables, Settings)))


def problem(**tables: object) -> str:
    [(key, text)] = found(**tables)
    return f"{key} {text}"


def model(**keys: object) -> str:
    return problem(models={"a": keys})


def test_the_defaults_have_no_problem():
    assert list(problems(Settings())) == []


def test_no_two_models_answer_to_one_name():
    both = {"a": {"aliases": ["x", "b"]}, "b": {"aliases": ["x", "b", "y", "y"]}}

    assert found(models=both) == [
        ("models.a.aliases", "has 'b', which is another model's name"),
        ("models.b.aliases", "has 'x', which is an alias of [models.a] already"),
        ("models.b.aliases", "has 'b', which is the model's own name"),
        ("models.b.aliases", "has 'y' twice"),
    ]


@pytest.mark.parametrize("name", ["", "a b", "a" * 129, "modèle", 'a"b', "a\n"])
def test_a_name_that_a_client_could_not_send_is_refused(name: str):
    assert "names are 1 to 128 letters, digits" in problem(models={name: {}})
    assert "names are 1 to 128 letters, digits" in model(aliases=[name])


@pytest.mark.parametrize("name", ["a", "Qwen/Qwen3-8B:fp8", "gpt-4o-mini", "a" * 128, "qwen2.5"])
def test_the_names_that_people_use_pass(name: str):
    assert found(models={name: {}}) == []


@pytest.mark.parametrize(
    "text", ["0.1.2", "-1", "1e3", " 1", "", "0.0000000001", "1_000", "NaN", "9" * 10, "\u0663"]
)
def test_a_price_that_is_not_plain_dollars_is_refused(text: str):
    assert "not dollars per million tokens such as '0.10'" in model(price={"input": text})


def test_each_part_of_a_price_is_checked():
    bad = {"input": "x", "cached_input": "x", "output": "x"}

    assert [key for key, _ in found(models={"a": {"price": bad}})] == [
        "models.a.price.input",
        "models.a.price.cached_input",
        "models.a.price.output",
    ]


def test_an_answer_that_may_be_kept_has_room_among_all_that_are():
    keys = {"max_answer_bytes": 11, "max_kept_bytes": 10}

    assert "is more than max_kept_bytes" in problem(idempotency=keys)
    assert found(idempotency=keys | {"max_answer_bytes": 10}) == []


def test_sizes_have_to_parse_and_leave_some_memory():
    assert problem(devices={"cpu_memory": "8XB"}) == (
        "devices.cpu_memory must be a size, but '8XB' is not a size such as '8GiB'"
    )
    assert model(kv_memory="0") == "models.a.kv_memory is '0', which leaves no memory"
    assert found(devices={"cpu_memory": "8GiB"}, models={"a": {"kv_memory": "512 MB"}}) == []


def test_a_burst_without_a_rate_is_refused():
    assert "without requests_per_minute" in problem(limits={"burst_requests": 5})
    assert found(limits={"burst_requests": 5, "requests_per_minute": 60}) == []


def test_patterns_have_to_compile_and_not_match_everything():
    assert problem(safety={"blocked_patterns": ["("]}) == (
        "safety.blocked_patterns has '(', no regular expression:"
        " missing ), unterminated subpattern at position 0"
    )
    assert "would refuse every request" in problem(safety={"blocked_patterns": ["a*"]})
    assert "is no word" in problem(safety={"blocked_words": ["ok", " "]})


@pytest.mark.parametrize(
    "source",
    ["builtin:tiny", "hf:Qwen/Qwen3-0.6B", "hf:a/b@refs/pr/1", "hf:a/b@main", "/w", "./w", "~/w"],
)
def test_the_sources_that_are_documented_pass(source: str):
    assert found(models={"a": {"source": source}}) == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        " ",
        "builtin:",
        "builtin:../x",
        "hf:",
        "hf:qwen",
        "hf:a/b/c",
        "hf:a/b@",
        "hf:../b",
        "s3://b/k",
    ],
)
def test_other_sources_are_refused(source: str):
    assert model(source=source).startswith("models.a.source is ")


@pytest.mark.parametrize(
    "source",
    [
        "builtin:tiny-gguf",
        "hf:a/b:Q4_K_M",
        "hf:a/b@main:sub/file-00001-of-00002.gguf",
        "hf:a/b-GGUF",
        "/w/model.gguf",
    ],
)
def test_a_gguf_source_is_for_the_engine_llama(source: str):
    assert found(models={"a": {"engine": "llama", "source": source}}) == []
    assert "reads no GGUF files" in model(engine="torch", source=source)


def test_the_engine_llama_takes_no_safetensors_model_that_is_built_in():
    assert "'builtin:tiny-gguf' is" in model(engine="llama", source="builtin:tiny")


def test_quantised_keys_need_flash_attention():
    options = {"kv_dtype": "q8_0", "flash_attention": "off"}
    assert "needs flash attention" in model(engine="llama", source="/w/model.gguf", options=options)


def test_adapters_have_names_that_can_be_asked_for_and_sources():
    assert found(models={"a": {"adapters": {"x-1": "hf:org/name", "team/y": "/a/folder"}}}) == []
    assert "has the name 'a:b'; it may have letters" in model(adapters={"a:b": "/a"})
    assert model(adapters={"x": "hf:name"}).startswith(
        "models.a.adapters x is 'hf:name', but a hub model is named like"
    )
    assert "no weights to adapt" in model(engine="fake", adapters={"x": "/a"})


def test_a_fake_model_needs_no_source():
    assert found(models={"a": {"engine": "fake", "source": "hf:"}}) == []


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x", "CPU"])
def test_a_device_is_auto_cpu_or_a_numbered_gpu(device: str):
    assert "must be 'auto', 'cpu', or 'cuda:N'" in model(options={"device": device})


def test_narrow_weights_need_a_gpu_and_no_adapters():
    assert "which needs a GPU" in model(options={"weights": "int4", "device": "cpu"})
    assert "is 'fp8', and LoRA adapters" in model(
        options={"weights": "fp8"}, adapters={"x": "/a/folder"}
    )
    assert found(models={"a": {"options": {"weights": "fp8", "device": "cuda:0"}}}) == []


def test_cors_origins_are_origins():
    assert found(server={"cors_origins": ["*", "https://chat.example", "http://a:1"]}) == []
    assert "which is not an origin" in problem(server={"cors_origins": ["chat.example"]})
    assert "which is not an origin" in problem(server={"cors_origins": ["https://a/path"]})


def test_empty_addresses_and_folders_are_refused():
    assert problem(server={"host": ""}).startswith("server.host is empty")
    assert problem(server={"data_dir": " "}).startswith("server.data_dir is empty")


def test_a_key_of_a_model_with_dots_is_found_in_its_own_table():
    settings = Settings(models={"q": ModelSpec(), "q.5": ModelSpec()})

    assert where("models.q.5.price.input", settings, {}, None) == '[models."q.5".price] input'
    assert where("models.q.source", settings, {}, None) == "[models.q] source"
    assert where("models.q.5", settings, {}, None) == '[models."q.5"]'


def test_a_smaller_model_must_be_named_and_be_a_source():
    assert "needs a smaller model" in model(speculation={"method": "draft"})
    assert "a built-in model is named like" in model(speculation={"draft": "builtin:"})
    assert "must be a size" in model(speculation={"kv_memory": "much"})
    assert found(models={"a": {"speculation": {"method": "draft", "draft": "/models/small"}}}) == []
