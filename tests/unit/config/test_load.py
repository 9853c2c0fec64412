"""Reading models.toml, environment and flags: what wins, and what an error says."""

from pathlib import Path

import pytest

from llmhost.config.environment import VARIABLES, keep_kernels
from llmhost.config.load import DEFAULT_MODELS, LoadedSettings, Origin, load
from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import ConfigError


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, environ: dict[str, str] | None = None, **flags: object) -> LoadedSettings:
    Path("models.toml").write_text(text)
    return load(None, environ or {}, flags)


def refusal(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, environ)
    return caught.value.message


def test_without_a_file_the_defaults_and_the_tiny_model_are_served():
    loaded = load(None, {}, {})

    assert loaded.settings == Settings(models=DEFAULT_MODELS)
    assert loaded.path is None
    assert set(loaded.origins.values()) == {Origin("default", "")}


def test_a_file_replaces_the_default_model():
    loaded = read('[models.echo]\nengine = "fake"\n')

    assert loaded.settings.models == {"echo": ModelSpec(engine="fake")}
    assert loaded.settings.server == ServerSettings()
    assert loaded.path == Path("models.toml")


def test_a_named_file_is_read_from_anywhere(tmp_path: Path):
    path = tmp_path / "etc" / "node.toml"
    path.parent.mkdir()
    path.write_text("[server]\nport = 1\n")

    assert load(path, {}, {}).settings.server.port == 1


def test_file_then_environment_then_flags():
    text = '[server]\nhost = "10.0.0.1"\nport = 1\nlog_level = "error"\n'
    loaded = load_with_all(text)

    assert loaded.settings.server.log_level == "error"
    assert loaded.settings.server.host == "10.0.0.2"
    assert loaded.settings.server.port == 3
    assert loaded.origins["server.log_level"] == ("file", "models.toml")
    assert loaded.origins["server.host"] == ("environment", "LLMHOST_SERVER_HOST")
    assert loaded.origins["server.port"] == ("flag", "--port")
    assert loaded.origins["server.data_dir"] == ("default", "")
    assert loaded.flags == {"server.port": 3}


def load_with_all(text: str) -> LoadedSettings:
    Path("models.toml").write_text(text)
    environ = {"LLMHOST_SERVER_HOST": "10.0.0.2", "LLMHOST_SERVER_PORT": "2", "PATH": "/bin"}
    return load(None, environ, {"server.port": 3, "server.log_level": None})


def test_a_models_keys_know_their_origin():
    loaded = read('[models.a]\nengine = "fake"\n[models.a.options]\nvocab = 16\n')

    assert loaded.origins["models.a.engine"] == ("file", "models.toml")
    assert loaded.origins["models.a.options.vocab"] == ("file", "models.toml")
    assert loaded.origins["models.a.options.token_delay_ms"] == ("default", "")
    assert loaded.origins["models.a.load"] == ("default", "")


def test_relative_paths_count_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "node"
    (folder / "rules").mkdir(parents=True)
    (folder / "node.toml").write_text(
        '[server]\ndata_dir = "data"\n[plugins]\ndir = "rules"\n[models.q]\nsource = "weights/q"\n'
    )
    (folder / "weights/q").mkdir(parents=True)
    loaded = load(Path("node/node.toml"), {}, {})
    monkeypatch.chdir(folder)

    assert loaded.data_dir == folder / "data"
    assert loaded.plugins_dir == folder / "rules"
    assert loaded.settings.models["q"].source == str(folder / "weights/q")


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ada")

    assert load(None, {}, {}).data_dir == Path("/home/ada/.llmhost")


def test_plugins_come_from_the_data_dir_and_never_from_the_folder_one_stands_in(tmp_path: Path):
    Path("plugins").mkdir()
    (tmp_path / "data" / "plugins").mkdir(parents=True)

    assert read('[server]\ndata_dir = "elsewhere"').plugins_dir is None
    assert read(f'[server]\ndata_dir = "{tmp_path}/data"').plugins_dir == tmp_path / "data/plugins"


def test_lists_come_from_the_environment_with_commas_or_as_json():
    environ = {
        "LLMHOST_SAFETY_BLOCKED_WORDS": "one, two,,three",
        "LLMHOST_SAFETY_BLOCKED_PATTERNS": r'["a{1,3}", "b"]',
        "LLMHOST_PLUGINS_DISABLED": "",
    }
    settings = load(None, environ, {}).settings

    assert settings.safety.blocked_words == ("one", "two", "three")
    assert settings.safety.blocked_patterns == ("a{1,3}", "b")
    assert settings.plugins.disabled == ()


def test_a_pattern_that_begins_like_a_json_list_is_still_a_pattern():
    settings = load(None, {"LLMHOST_SAFETY_BLOCKED_PATTERNS": "[a-z]{30}"}, {}).settings

    assert settings.safety.blocked_patterns == ("[a-z]{30}",)


def test_an_empty_variable_makes_an_optional_key_absent():
    loaded = read("[limits]\nrequests_per_minute = 5\n", {"LLMHOST_LIMITS_REQUESTS_PER_MINUTE": ""})

    assert loaded.settings.limits.requests_per_minute is None


@pytest.mark.parametrize("name", VARIABLES)
def test_every_key_of_the_fixed_tables_has_a_variable(name: str, tmp_path: Path):
    table, key = VARIABLES[name]
    default = getattr(getattr(Settings(), table), key)
    text = {
        "LLMHOST_PLUGINS_DIR": str(tmp_path),
        "LLMHOST_SERVER_CORS_ORIGINS": "http://a",
        "LLMHOST_SERVER_LOG_LEVEL": "error",
        "LLMHOST_SERVER_LOG_FORMAT": "json",
        "LLMHOST_SAFETY_CHECK_OUTPUT": "0",
        "LLMHOST_DEVICES_GPU_MEMORY_FRACTION": "0.5",
        "LLMHOST_SERVER_WRITE_SHARE": "0.5",
        "LLMHOST_BATCHES_BUSY_SHARE": "0.5",
        "LLMHOST_SERVER_UNIX_SOCKET_MODE": "660",
        "LLMHOST_SERVER_ROOT_PATH": "/llm",
        "LLMHOST_LIMITS_TRUSTED_PROXIES": "10.0.0.0/8",
        "LLMHOST_COSTS_SHOWN_TO_CALLERS": "0",
        "LLMHOST_BILLING_FAILED_ANSWERS": "delivered",
        "LLMHOST_BILLING_REFUSED_PROMPTS": "judged",
        "LLMHOST_BILLING_BUDGET_METRICS": "1",
        "LLMHOST_CACHE_USE": "off",
        "LLMHOST_CACHE_LEARN": "0",
        "LLMHOST_CACHE_MIN_HIT_POTENTIAL": "0.5",
        "LLMHOST_REVIEWS_FOUR_EYES": "1",
        "LLMHOST_REVIEWS_WEBHOOK": "https://a/b",
        "LLMHOST_REVIEWS_WEBHOOK_PRIVATE": "1",
        "LLMHOST_REVIEWS_WEBHOOK_TIMEOUT_S": "7",
        "LLMHOST_SAFETY_GUARD": "tiny",
        "LLMHOST_SAFETY_GUARD_DIRECTIONS": "input",
        "LLMHOST_SAFETY_GUARD_FAILS_OPEN": "1",
        "LLMHOST_SAFETY_KEEP_FAILS_OPEN": "1",
        "LLMHOST_SAFETY_GUARD_THRESHOLD": "0.3",
        "LLMHOST_SAFETY_KEEP_PROMPTS": "all",
        "LLMHOST_REVIEWS_SAMPLE_SHARE": "0.5",
        "LLMHOST_AUDIT_EACH_ALLOWED": "1",
    }.get(name, "77")
    rate = {"LLMHOST_LIMITS_REQUESTS_PER_MINUTE": "60"} if key == "burst_requests" else {}
    if key in ("tls_cert", "tls_key"):
        rate = {"LLMHOST_SERVER_TLS_CERT": "77", "LLMHOST_SERVER_TLS_KEY": "77"}
    if key == "max_kept_bytes":
        rate = {"LLMHOST_IDEMPOTENCY_MAX_ANSWER_BYTES": "77"}
    if key == "power_watts":
        rate = {"LLMHOST_COSTS_PRICE_PER_KWH": "0.2"}

    loaded = load(None, {name: text, **rate}, {})

    assert getattr(getattr(loaded.settings, table), key) != default
    assert loaded.origins[f"{table}.{key}"] == ("environment", name)


def test_switches_and_numbers_come_from_the_environment():
    environ = {"LLMHOST_SAFETY_CHECK_OUTPUT": "false", "LLMHOST_SERVER_DRAIN_TIMEOUT_S": "2.5"}
    settings = load(None, environ, {}).settings

    assert settings.safety.check_output is False
    assert settings.server.drain_timeout_s == 2.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LLMHOST_SERVICE_HOST", "10.0.0.1"),
        ("LLMHOST_SERVICE_PORT_HTTP", "80"),
        ("LLMHOST_PORT", "tcp://10.0.0.1:80"),
        ("LLMHOST_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("LLMHOST_SERVER_PORT", "tcp://10.0.0.1:80"),
        ("LLMHOST_SERVER_PORT_80_TCP", "tcp://10.0.0.1:80"),
    ],
)
def test_what_kubernetes_says_about_a_service_called_llmhost_is_left_alone(name: str, value: str):
    assert load(None, {name: value}, {}).settings.server.port == 8000


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"LLMHOST_SERVER_PROT": "1"},
            "The environment variable LLMHOST_SERVER_PROT sets nothing. Did you mean LLMHOST_SERVER_PORT?",
        ),
        (
            {"LLMHOST_ADMINTOKEN": "x"},
            "The environment variable LLMHOST_ADMINTOKEN sets nothing. Did you mean LLMHOST_ADMIN_TOKEN?",
        ),
        (
            {"LLMHOST_MODELS_QWEN_ENGINE": "fake"},
            "The environment variable LLMHOST_MODELS_QWEN_ENGINE sets nothing."
            " Models are declared in models.toml only.",
        ),
        (
            {"LLMHOST_SERVER_PORT": "eighty"},
            'LLMHOST_SERVER_PORT is "eighty" but must be a whole number from 0 to 65535.',
        ),
        (
            {"LLMHOST_SERVER_PORT": ""},
            "LLMHOST_SERVER_PORT is empty but must be a whole number from 0 to 65535; unset it for the default.",
        ),
        (
            {"LLMHOST_SERVER_HEARTBEAT_S": "nan"},
            'LLMHOST_SERVER_HEARTBEAT_S is "nan" but must be a number above 0.',
        ),
        (
            {"LLMHOST_LIMITS_BURST_REQUESTS": "5"},
            "LLMHOST_LIMITS_BURST_REQUESTS has no effect without requests_per_minute; set both or neither.",
        ),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], message: str):
    with pytest.raises(ConfigError) as caught:
        load(None, environ, {})

    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[models.qwen]\naliasses = ["a"]',
            "models.toml: [models.qwen] has no key 'aliasses'. Did you mean 'aliases'?",
        ),
        (
            '[models."qwen2.5"]\nport = 1',
            "models.toml: [models.\"qwen2.5\"] has no key 'port'. It belongs in [server].",
        ),
        (
            '[models.qwen2.5]\nengine = "fake"',
            "models.toml: [models.qwen2] has no key '5'. A model name with a dot in it needs quotes,"
            ' such as [models."qwen2.5"].',
        ),
        (
            "[limits]\nzzz = 1",
            "models.toml: [limits] has no key 'zzz'. It has requests_per_minute, burst_requests,"
            " input_tokens_per_minute, output_tokens_per_minute, max_concurrency, queue_size, queue_wait_s,"
            " run_requests_per_minute, run_input_tokens_per_minute, run_output_tokens_per_minute,"
            " run_max_concurrency, failed_auth_per_minute, trusted_proxies.",
        ),
        ("[servers]\nport = 1", "models.toml: there is no table [servers]. Did you mean [server]?"),
        (
            "[model.x]\nport = 1",
            "models.toml: there is no table [model]. Did you mean [models.NAME]?",
        ),
        (
            '[qwen]\nengine = "fake"',
            "models.toml: there is no table [qwen]. A model's table is [models.qwen].",
        ),
        ("port = 1", "models.toml: 'port' stands outside of any table. Put it under [server]."),
        ("zzz = 1", "models.toml: 'zzz' stands outside of any table."),
        ("server = 1", "models.toml: [server] must be a table, not 1."),
        ("[[models]]\n", "models.toml: each model is a table of its own, [models.NAME]."),
        (
            '[models]\nengine = "fake"',
            "models.toml: [models] engine is not a table; a model is [models.NAME].",
        ),
        (
            "[server]\nport = 99999",
            "models.toml: [server] port is 99999 but must be a whole number from 0 to 65535.",
        ),
        (
            "[server]\nport = true",
            "models.toml: [server] port is true but must be a whole number from 0 to 65535.",
        ),
        (
            "[server]\ndrain_timeout_s = inf",
            "models.toml: [server] drain_timeout_s is Infinity but must be a number of at least 0.",
        ),
        (
            '[server]\nlog_level = "WARN"',
            'models.toml: [server] log_level is "WARN" but must be one of "debug", "info", "warning",'
            ' "error". Did you mean "warning"?',
        ),
        (
            '[safety]\nblocked_words = "one"',
            'models.toml: [safety] blocked_words is "one" but must be a list of texts in quotes.',
        ),
        (
            "[models.a.price]\ninput = 0.1",
            'models.toml: [models.a.price] input is 0.1 but must be text in quotes. Write "0.1".',
        ),
        ("[models.a]\nprice = 1", "models.toml: [models.a.price] must be a table, not 1."),
        (
            "[models.a.options]\ntoken_delay_ms = 1",
            "models.toml: [models.a.options] has no key 'token_delay_ms'."
            " It has dtype, device, threads, trust_remote_code, task, pooling, normalize, weights,"
            " kv_dtype, attention.",
        ),
        (
            '[models.a]\nengine = "fake"\n[models.a.options]\nvocab = 1',
            "models.toml: [models.a.options] vocab is 1 but must be a whole number from 16 to 1000000.",
        ),
        (
            "[server]\nport = \n",
            "models.toml: line 2, column 8: not valid TOML: invalid value.",
        ),
        (
            "[models.a]\n[models.a]\n",
            "models.toml: line 2, column 10: not valid TOML: cannot declare ('models', 'a') twice.",
        ),
        (
            '[models.a]\nsource = "Qwen/Qwen3-0.6B"',
            "models.toml: [models.a] source is 'Qwen/Qwen3-0.6B', which is no folder."
            " From the Hugging Face hub it is written 'hf:Qwen/Qwen3-0.6B'.",
        ),
    ],
)
def test_an_error_names_file_table_key_and_cure(text: str, message: str):
    assert refusal(text) == message


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"^nowhere\.toml: there is no such file\.$"):
        load(Path("nowhere.toml"), {}, {})


def test_a_folder_or_bytes_in_place_of_a_file_are_refused(tmp_path: Path):
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")

    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {}, {})
    with pytest.raises(ConfigError, match=r"is not UTF-8 text \(byte 5\)"):
        load(tmp_path / "bytes.toml", {}, {})


def test_a_bad_flag_is_named():
    with pytest.raises(ConfigError, match=r"^--port is 70000 but must be a whole number from 0"):
        load(None, {}, {"server.port": 70000})


def test_a_named_plugin_folder_has_to_exist():
    assert refusal('[plugins]\ndir = "/nowhere"') == (
        "models.toml: [plugins] dir is '/nowhere', and there is no such folder."
    )
    with pytest.raises(ConfigError, match=r"^--plugins is 'nowhere', and there is no such folder"):
        load(None, {}, {"plugins.dir": "nowhere"})


def test_a_smaller_model_counts_from_the_files_folder(tmp_path: Path):
    path = tmp_path / "models.toml"
    path.write_text('[models.a.speculation]\nmethod = "draft"\ndraft = "small"')
    loaded = load(path, {}, {})

    assert loaded.settings.models["a"].speculation.draft == str(tmp_path / "small")
    assert loaded.origins["models.a.speculation.draft"].kind == "file"
    assert loaded.origins["models.a.speculation.max_tokens"].kind == "default"


@pytest.mark.parametrize("named", [None, "/elsewhere"])
def test_compiled_kernels_are_kept_unless_the_environment_names_another_place(
    named: str | None, tmp_path: Path
):
    environ = {} if named is None else {"TRITON_CACHE_DIR": named}
    keep_kernels(environ, tmp_path)
    assert environ["TRITON_CACHE_DIR"] == (named or str(tmp_path))
