"""Models, plugins, settings, serving: what each command asks and prints."""

import json
import time
from pathlib import Path

import pytest

from llmhost import __version__
from llmhost.config.load import LoadedSettings

MODEL = {"name": "tiny", "version": 1, "engine": "torch", "source": "builtin:tiny"}
MODEL |= {
    "aliases": ["a", "b"],
    "state": "ready",
    "reason": None,
    "load": "start",
    "files": "present",
}
MODEL |= {"price": {"input": "0.10", "cached_input": None, "output": "0.40"}}


def test_models_of_a_running_node_are_listed(node, llmhost):
    failed = MODEL | {"name": "big", "state": "failed", "reason": "too large", "price": None}
    node.answers["GET /admin/v1/models"] = {"data": [MODEL, failed]}

    assert llmhost("models").stdout.splitlines() == [
        "NAME  VERSION  ENGINE  SOURCE        FILES    STATE               ALIASES  PRICE",
        "tiny        1  torch   builtin:tiny  present  ready               a, b     0.10 / - / 0.40",
        "big         1  torch   builtin:tiny  present  failed (too large)  a, b     -",
    ]
    assert json.loads(llmhost("models", "--json").stdout) == [MODEL, failed]


def test_without_a_node_models_are_what_the_settings_declare(llmhost, tmp_path: Path):
    (tmp_path / "models.toml").write_text('[models.echo]\nengine = "fake"\n')

    result = llmhost("models", "--json")

    [row] = json.loads(result.stdout)
    assert (row["name"], row["engine"], row["state"], row["price"]) == (
        "echo",
        "fake",
        "stopped",
        None,
    )
    assert result.stderr == "No llmhost server is running. This is what models.toml declares.\n"


def test_loaded_models_are_listed_with_memory_and_load(node, llmhost):
    row = {"model": "tiny@1", "state": "ready", "device": "cpu:0", "weights_bytes": 2**20}
    row |= {"kv_bytes": 2**21, "predicted_bytes": 3 * 2**20, "measured_bytes": 4 * 2**20}
    row |= {"running": 2, "waiting": 0}
    row |= {"kv_blocks_used": 5, "kv_blocks_total": 20, "load_s": 1.0}
    row |= {"since_ns": time.time_ns() - 3 * 3600 * 10**9}
    bare = {"model": "fake@1", "state": "loading", "device": "none"}
    node.answers["GET /admin/v1/ps"] = {"data": [row, bare]}

    assert llmhost("ps").stdout.splitlines() == [
        "MODEL   STATE    DEVICE  WEIGHTS  PREDICTED  MEASURED  KV CACHE  KV USED  RUNNING  WAITING  SINCE",
        "tiny@1  ready    cpu:0   1.0 MiB  3.0 MiB    4.0 MiB   2.0 MiB   25%            2        0  3h",
        "fake@1  loading  none    -        -          -         -         -              -        -  -",
    ]


ADAPTER = {"adapter": "tiny:pirate", "model": "tiny", "source": "/a", "origin": "file"}
ADAPTER |= {"files": "present", "state": "ready", "bytes": 2**20, "requests": 2}


def test_adapters_are_listed_loaded_and_unloaded(node, llmhost, tmp_path: Path):
    node.answers["GET /admin/v1/adapters"] = {"data": [ADAPTER]}
    node.answers["POST /admin/v1/adapters/load"] = ADAPTER
    node.answers["POST /admin/v1/adapters/unload"] = ADAPTER | {"state": "absent"}
    (tmp_path / "lora").mkdir()

    assert llmhost("adapters", "list").stdout.splitlines() == [
        "ADAPTER      SOURCE  ORIGIN  FILES    STATE  SIZE     REQUESTS",
        "tiny:pirate  /a      file    present  ready  1.0 MiB         2",
    ]
    loaded = llmhost("adapters", "load", "tiny:pirate", "--source", "lora")
    assert loaded.stdout == "tiny:pirate is ready, 1.0 MiB\n"
    assert llmhost("adapters", "unload", "tiny:pirate").stdout == "tiny:pirate is absent\n"
    assert json.loads(llmhost("adapters", "load", "tiny:pirate", "--json").stdout) == ADAPTER
    bodies = [asked["body"] for asked in node.asked if asked["body"]]
    assert bodies == [
        {"adapter": "tiny:pirate", "source": str(tmp_path / "lora")},
        {"adapter": "tiny:pirate"},
        {"adapter": "tiny:pirate", "source": None},
    ]


def test_only_a_running_node_has_loaded_models(llmhost, tmp_path: Path):
    for args in (("ps",), *((verb, "tiny") for verb in ("load", "unload", "sleep", "wake"))):
        result = llmhost(*args)

        assert result.exit_code == 1
        assert result.stderr == (
            f"Error: No llmhost server runs on {tmp_path / 'data'}."
            " Start one with `llmhost serve`, or name one with --url.\n"
        )


def test_a_model_is_loaded_and_unloaded(node, llmhost):
    done = {"model": "a/b@1", "state": "ready", "took_s": 1.25, "bytes": 2**30}
    node.answers["POST /admin/v1/models/a/b/load"] = done
    node.answers["POST /admin/v1/models/a/b/unload"] = done | {"state": "stopped", "bytes": None}

    assert llmhost("load", "a/b").stdout == "a/b@1 is ready after 1.2 s, 1.0 GiB\n"
    assert llmhost("unload", "a/b").stdout == "a/b@1 is stopped after 1.2 s\n"
    assert json.loads(llmhost("load", "a/b", "--json").stdout) == done
    assert node.asked[0]["raw_path"] == "/admin/v1/models/a%2Fb/load"


def test_a_model_is_put_to_sleep_and_woken(node, llmhost):
    done = {"model": "a/b@1", "state": "asleep", "took_s": 0.75, "bytes": 2**30}
    node.answers["POST /admin/v1/models/a/b/sleep"] = done
    node.answers["POST /admin/v1/models/a/b/wake"] = done | {"state": "ready", "took_s": 0.3}

    assert llmhost("sleep", "a/b").stdout == "a/b@1 is asleep after 0.8 s, 1.0 GiB\n"
    assert llmhost("wake", "a/b").stdout == "a/b@1 is ready after 0.3 s, 1.0 GiB\n"
    assert json.loads(llmhost("sleep", "a/b", "--json").stdout) == done


PLUGIN = {"name": "night_rates", "version": None, "hooks": ["quote_price"], "calls": 5}
PLUGIN |= {"errors": 0, "p50_ms": 0.1, "p99_ms": 2.5}


def test_plugins_of_a_running_node_are_listed(node, llmhost):
    node.answers["GET /admin/v1/plugins"] = {"data": [PLUGIN]}

    assert llmhost("plugins").stdout.splitlines() == [
        "NAME         VERSION  HOOKS        CALLS  ERRORS  P50 MS  P99 MS",
        "night_rates        -  quote_price      5       0     0.1     2.5",
    ]


def test_plugins_of_a_folder_are_listed_without_a_node(llmhost, host, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    seen: list[LoadedSettings] = []
    host.list_plugins = lambda loaded: seen.append(loaded) or [PLUGIN]

    result = llmhost("plugins", "--plugins", "mine", "--json")

    assert json.loads(result.stdout) == [PLUGIN]
    assert seen[0].plugins_dir == Path("mine")


def test_a_named_folder_is_listed_even_while_a_node_runs(node, llmhost, host, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    host.list_plugins = lambda loaded: []

    assert llmhost("plugins", "--plugins", "mine").stderr == "No plugins.\n"
    assert node.asked == []


def test_serve_hands_settings_to_the_host_and_exits_as_it_says(llmhost, host, tmp_path: Path):
    (tmp_path / "node.toml").write_text("[server]\nport = 1\nheartbeat_s = 3\n")
    (tmp_path / "mine").mkdir()
    seen: list[LoadedSettings] = []
    host.serve = lambda loaded, as_json: seen.append(loaded) or 3

    result = llmhost(
        *("serve", "--models", "node.toml", "--host", "0.0.0.0", "--port", "0"),
        *("--data-dir", "d", "--plugins", "mine", "--log-level", "debug"),
    )

    assert result.exit_code == 3
    server = seen[0].settings.server
    assert (server.host, server.port, server.data_dir) == ("0.0.0.0", 0, "d")
    assert (server.log_level, server.heartbeat_s) == ("debug", 3.0)
    assert seen[0].plugins_dir == Path("mine")


def test_serve_does_not_start_on_bad_settings(llmhost, host, tmp_path: Path):
    (tmp_path / "models.toml").write_text('[models.a]\naliasses = ["b"]\n')

    result = llmhost("serve")

    assert result.exit_code == 1
    assert result.stderr == (
        "Error: models.toml: [models.a] has no key 'aliasses'. Did you mean 'aliases'?\n"
    )


def test_an_interrupt_exits_with_130_and_says_nothing(llmhost, host):
    def interrupted(_: LoadedSettings, *, as_json: bool) -> int:
        raise KeyboardInterrupt

    host.serve = interrupted
    result = llmhost("serve")

    assert (result.exit_code, result.output) == (130, "")


def test_a_setting_is_explained(llmhost, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMHOST_SERVER_PORT", "9000")

    result = llmhost("config", "explain", "server.port")
    listed = json.loads(llmhost("config", "explain", "server.port", "--json").stdout)

    assert result.stdout.splitlines() == [
        "server.port = 9000  (environment LLMHOST_SERVER_PORT)",
        "    TCP port; 0 takes a free one, which `server.json` in the data dir names.",
    ]
    assert listed[0]["origin_name"] == "LLMHOST_SERVER_PORT"
    assert listed[0]["takes"] == "a whole number from 0 to 65535"


def test_all_settings_are_explained(llmhost):
    stdout = llmhost("config", "explain").stdout

    assert 'models.tiny.aliases = ["gpt-4o-mini"]  (default)\n' in stdout
    assert "limits.requests_per_minute = absent  (default)\n" in stdout
    assert llmhost("config", "explain", "zzz").exit_code == 1


def test_settings_are_checked(llmhost, tmp_path: Path):
    assert llmhost("config", "check").stdout == (
        "No models.toml; the built-in default: good, with 3 models\n"
    )
    (tmp_path / "models.toml").write_text("")
    empty = llmhost("config", "check")
    assert (empty.stdout, empty.exit_code) == ("models.toml: good, with 0 models\n", 0)
    assert empty.stderr.startswith("No model is declared")
    (tmp_path / "models.toml").write_text("[server]\nport = 70000\n")
    bad, asjson = llmhost("config", "check"), llmhost("config", "check", "--json")
    assert (bad.exit_code, asjson.exit_code) == (1, 1)
    assert bad.stderr.startswith("Error: models.toml: [server] port is 70000 but must be")
    assert json.loads(asjson.stdout)["problem"].startswith("models.toml: [server] port is 70000")


def test_a_good_check_is_an_object_for_programs(llmhost):
    checked = json.loads(llmhost("config", "check", "--json").stdout)

    assert checked == {
        "ok": True,
        "file": None,
        "problem": None,
        "models": ["tiny", "tiny-embed", "tiny-guard"],
    }


def test_the_schema_is_json(llmhost):
    assert "server" in json.loads(llmhost("config", "schema").stdout)["properties"]


def test_the_places_in_use_are_printed(llmhost, tmp_path: Path):
    assert llmhost("config", "path").stdout.splitlines()[0] == "settings  -"
    (tmp_path / "models.toml").write_text("")
    (tmp_path / "data" / "plugins").mkdir(parents=True)

    assert json.loads(llmhost("config", "path", "--json").stdout) == {
        "settings": str(tmp_path / "models.toml"),
        "data_dir": str(tmp_path / "data"),
        "plugins": str(tmp_path / "data" / "plugins"),
    }


def test_the_version_is_printed_three_ways(llmhost):
    assert llmhost("version").stdout == f"llmhost {__version__}\n"
    assert llmhost("--version").stdout == f"llmhost {__version__}\n"
    assert json.loads(llmhost("version", "--json").stdout) == {"version": __version__}
