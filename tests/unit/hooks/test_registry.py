"""Loading and checking plugins, and what is known of them afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmhost import hookimpl
from llmhost.config.schema.server import PluginSettings
from llmhost.core.errors import ConfigError
from llmhost.hooks.check import hook_arguments
from llmhost.hooks.find import Found
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import RULES


def plugin(name: str, *functions: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(__name__=name, **{f.__name__: hookimpl(f) for f in functions})


def complaint(*plugins: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Plugins.of(*plugins)
    return caught.value.message


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


CACHING = """
from llmhost import hookimpl

@hookimpl
def may_cache(request):
    return {answer}
"""


def test_a_hook_that_nobody_implements_is_not_there():
    plugins = Plugins.of()

    assert not plugins.has("check_input")
    assert plugins.implementations("check_input") == ()


def test_objects_are_asked_in_the_order_given_and_marks_move_them():
    def caching(name: str, **marks: bool) -> SimpleNamespace:
        return SimpleNamespace(__name__=name, may_cache=hookimpl(**marks)(lambda request: True))

    plugins = Plugins.of(
        caching("last", trylast=True), caching("a"), caching("b"), caching("first", tryfirst=True)
    )

    order = [one.plugin for one in plugins.implementations("may_cache")]
    assert order == ["first", "a", "b", "last"]


def test_files_are_loaded_by_name_and_helpers_and_tests_are_not(tmp_path):
    write(tmp_path, "b.py", CACHING.format(answer=True))
    write(tmp_path, "a.py", "__version__ = '1.2'\n" + CACHING.format(answer=False))
    write(tmp_path, "_shared.py", "raise RuntimeError")
    write(tmp_path, "test_a.py", "raise RuntimeError")
    write(tmp_path, "conftest.py", "raise RuntimeError")

    plugins = Plugins.load(folder=tmp_path, packages=False)

    assert [one.plugin for one in plugins.implementations("may_cache")] == ["a", "b"]
    (a, b) = plugins.report()
    assert (a.name, a.version, a.origin) == ("a", "1.2", str(tmp_path / "a.py"))
    assert (b.name, b.version, [hook.hook for hook in b.hooks]) == ("b", None, ["may_cache"])


def test_a_file_may_be_called_like_a_module_and_may_define_dataclasses(tmp_path):
    write(
        tmp_path,
        "json.py",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Settings:\n    limit: int = 1\n" + CACHING.format(answer=True),
    )

    assert Plugins.load(folder=tmp_path, packages=False).has("may_cache")
    assert json.loads("1") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_broken_file_fails_start_up_by_name(tmp_path, text, said):
    write(tmp_path, "broken.py", text)

    with pytest.raises(ConfigError, match=r"broken\.py failed to load: ") as caught:
        Plugins.load(folder=tmp_path, packages=False)
    assert said in caught.value.message


def test_a_disabled_file_is_not_even_read(tmp_path):
    write(tmp_path, "broken.py", "raise RuntimeError")

    settings = PluginSettings(dir=str(tmp_path), disabled=("broken",))

    assert Plugins.load(settings, packages=False).report() == ()


def test_a_misspelt_disabled_name_is_reported(tmp_path, caplog):
    write(tmp_path, "cache.py", CACHING.format(answer=True))

    settings = PluginSettings(dir=str(tmp_path), disabled=("cahce",))

    assert Plugins.load(settings, packages=False).has("may_cache")
    assert caplog.messages == ["plugin.absent plugin=cahce why=only_named_in_disabled"]


def test_a_folder_that_was_asked_for_must_exist_and_a_default_one_need_not(tmp_path):
    missing = tmp_path / "missing"

    assert Plugins.load(folder=missing, packages=False).report() == ()
    with pytest.raises(ConfigError, match="not a folder"):
        Plugins.load(PluginSettings(dir=str(missing)), packages=False)


def install(folder: Path, module: str, text: str) -> None:
    """What pip leaves behind, as far as plugins are concerned."""
    write(folder, f"{module}.py", text)
    info = folder / f"{module}-2.0.dist-info"
    info.mkdir()
    write(info, "METADATA", f"Metadata-Version: 2.1\nName: {module}\nVersion: 2.0\n")
    write(info, "entry_points.txt", f"[llmhost]\n{module.replace('_', '-')} = {module}\n")


def test_installed_packages_are_found_by_their_entry_point(tmp_path, monkeypatch):
    install(tmp_path, "never_cache_this", CACHING.format(answer=False))
    monkeypatch.syspath_prepend(tmp_path)

    (one,) = Plugins.load().report()

    assert (one.name, one.version, one.origin) == ("never-cache-this", "2.0", "never_cache_this")
    assert Plugins.load(PluginSettings(disabled=("never-cache-this",))).report() == ()


def test_a_broken_package_fails_start_up_by_name(tmp_path, monkeypatch):
    install(tmp_path, "broken_package", "raise ValueError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigError, match="'broken-package' of the package broken_package"):
        Plugins.load()


def test_two_plugins_of_one_name_are_refused_with_both_places(tmp_path):
    write(tmp_path, "a.py", CACHING.format(answer=True))

    def may_cache(request): ...

    with pytest.raises(ConfigError, match=r"called 'a': one from given and one from .*a\.py"):
        Plugins.load(objects=[plugin("a", may_cache)], folder=tmp_path, packages=False)


def test_one_object_under_two_names_is_refused():
    def may_cache(request): ...

    one = plugin("a", may_cache)

    with pytest.raises(ConfigError, match="already registered"):
        Plugins([Found("a", "x", None, one), Found("b", "y", None, one)])


def test_an_unknown_hook_names_the_nearest_one():
    def check_imput(request): ...

    assert complaint(plugin("p", check_imput)) == (
        "Plugin 'p': there is no hook 'check_imput'. Did you mean 'check_input'?"
    )


def test_a_hook_of_another_version_may_be_marked_optional():
    def may_cache(request): ...

    extra = plugin("p", may_cache)
    extra.foresee = hookimpl(optionalhook=True)(lambda future: None)

    assert Plugins.of(extra).has("may_cache")


def test_a_function_may_have_another_name_than_its_hook():
    def decide(request): ...

    one = SimpleNamespace(__name__="p", decide=hookimpl(specname="may_cache")(decide))

    assert Plugins.of(one).has("may_cache")


def test_an_unknown_argument_names_the_nearest_one():
    def check_input(requst): ...

    assert complaint(plugin("p", check_input)) == (
        "Plugin 'p': check_input has no argument 'requst'. Did you mean 'request'?"
        " It has: request, caller."
    )


def test_defaults_are_refused_because_they_would_never_be_used():
    def check_input(request, caller=None): ...

    assert "gives 'caller' a default" in complaint(plugin("p", check_input))


def test_arguments_must_be_named_one_by_one():
    def check_input(**facts): ...

    def admit_request(*, caller): ...

    assert "'**facts'" in complaint(plugin("p", check_input))
    assert "'caller'" in complaint(plugin("p", admit_request))


@pytest.mark.parametrize("marks", [{"wrapper": True}, {"hookwrapper": True}])
def test_wrappers_are_refused(marks):
    @hookimpl(**marks)
    def check_input(request):
        return (yield)

    one = SimpleNamespace(__name__="p", check_input=check_input)

    assert "wrapper" in complaint(one)


def test_generators_are_refused():
    def check_input(request):
        yield None

    async def admit_request(caller):
        yield None

    assert "check_input yields" in complaint(plugin("p", check_input))
    assert "admit_request yields" in complaint(plugin("p", admit_request))


def test_registering_is_never_async():
    async def register_engines(register): ...

    assert "register_engines is async" in complaint(plugin("p", register_engines))


def test_a_forgotten_mark_is_an_error_and_not_a_silent_gap():
    def check_input(request): ...

    assert "not marked" in complaint(SimpleNamespace(__name__="p", check_input=check_input))


def test_a_plugin_without_hooks_is_refused():
    assert "implements no hook" in complaint(SimpleNamespace(__name__="p", x=1))


def test_methods_of_an_object_are_hooks_too():
    class Limits:
        @hookimpl
        def admit_request(self, caller): ...

    (one,) = Plugins.of(Limits()).implementations("admit_request")

    assert (one.plugin, one.argnames) == ("Limits", ("caller",))


def test_every_hook_has_a_rule_and_a_docstring():
    from llmhost.hooks import spec

    for hook in RULES:
        assert hook_arguments(hook)
        assert getattr(spec, hook).__doc__


def test_two_hosts_have_nothing_in_common():
    def may_cache(request): ...

    assert Plugins.of(plugin("a", may_cache)).has("may_cache")
    assert not Plugins.of().has("may_cache")
