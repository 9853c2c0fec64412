"""What transformers gets late, who else does not, and what comes of a transformers that does not like it."""

import builtins
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental import symbolic_shapes

from llmhost.engines.torch import late
from llmhost.engines.torch.late import Late, import_transformers, late_imports

TOY = "colorsys"
"""A module that nobody else imports."""
NEVER = {
    "accelerate",
    "llvmlite",
    "pandas",
    "scipy",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "triton",
}
ONE_MODEL = """
import sys
from pathlib import Path
import llmhost
from llmhost.config.schema.models import (ModelSpec)
from llmhost.core.sampling import (Sampling)
from llmhost.core.step import Row
from llmhost.engines.kinds import TorchKind

spec = ModelSpec(engine="torch", source="builtin:tiny", options={"device": "cpu"})
folder = Path(llmhost.__file__).parent / "engines/builtin/tiny"
kind = TorchKind(Path(sys.argv[1]))
runner = kind.load(spec, folder, kind.footprint(spec, folder))
runner.set_kv_blocks(4)
for sampling in (Sampling(temperature=0.0, logprobs=2), Sampling(top_p=0.9, top_k=5, presence_penalty=0.5)):
    (drawn,) = runner.run([Row(0, [1, 2, 3], 0, [1], sampling, 0, True)])
    assert drawn is not None
print(*sys.modules)
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(late, "LATE", (TOY,))
    monkeypatch.delitem(sys.modules, TOY, raising=False)
    yield
    sys.modules.pop(TOY, None)


def ran(code: str, name: str = "transformers.toy") -> dict[str, Any]:
    """What a module of that name has after it was imported while imports are late."""
    names: dict[str, Any] = {"__name__": name}
    with late_imports():
        exec(code, names)
    return names


def test_a_node_with_one_torch_model_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONE_MODEL, str(tmp_path / "names.json")]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert set(done.stdout.split()) & NEVER == set()
    assert done.stderr == ""
    assert (tmp_path / "names.json").is_file()


def test_a_late_name_is_imported_when_it_is_used(toy: None) -> None:
    names = ran(f"from {TOY} import rgb_to_hsv")

    assert type(names["rgb_to_hsv"]) is Late
    assert TOY not in sys.modules
    assert names["rgb_to_hsv"](1.0, 0.0, 0.0) == (0.0, 1.0, 1.0)


def test_nothing_is_an_instance_of_what_is_not_imported(toy: None) -> None:
    kind = Late(TOY, lambda: float)

    assert not isinstance(1.0, kind)  # type: ignore[arg-type]
    __import__(TOY)
    assert isinstance(1.0, kind)  # type: ignore[arg-type]
    assert not isinstance(1, (str, kind))  # type: ignore[arg-type]
    assert issubclass(float, kind)  # type: ignore[arg-type]


def test_late_names_stand_in_annotations_and_among_the_bases_of_classes(toy: None) -> None:
    ran(f"from {TOY} import X\ndef one(x: X | None, y: 'X') -> int | X: ...")

    class Made(Late("fractions", lambda: __import__("fractions").Fraction)):  # type: ignore[misc]
        pass

    assert Made(1) + 1 == 2


def test_to_ask_whether_a_late_name_has_something_imports_nothing_at_first(toy: None) -> None:
    with late._first():
        names = ran(f"from {TOY} import X\nif not hasattr(X, 'new'): X.new = X.old")

    assert "new" not in vars(names["X"])
    assert TOY not in sys.modules


def test_what_a_late_name_gives_while_transformers_is_imported_is_late_too(toy: None) -> None:
    with late._first():
        names = ran(f"from {TOY} import rgb_to_hsv\nred = rgb_to_hsv(1.0, 0.0, 0.0)")

    assert TOY not in sys.modules
    assert names["red"].index(0.0) == 0


@pytest.mark.parametrize("name", ["llmhost.toy", "transformers_modules.toy", "torch.toy"])
def test_others_get_the_real_thing(toy: None, name: str) -> None:
    names = ran(f"from {TOY} import rgb_to_hsv", name)

    assert names["rgb_to_hsv"] is sys.modules[TOY].rgb_to_hsv


def test_what_is_imported_already_is_no_later(toy: None) -> None:
    __import__(TOY)

    assert ran(f"from {TOY} import rgb_to_hsv")["rgb_to_hsv"] is sys.modules[TOY].rgb_to_hsv


def test_everything_is_as_before_when_the_last_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.delitem(vars(torch), "_dynamo", raising=False)
    before = builtins.__import__, torch.compiler.disable
    with late_imports():
        with late_imports():
            pass
        assert builtins.__import__ is not before[0]
        assert "_dynamo" in vars(torch)

    assert (builtins.__import__, torch.compiler.disable) == before
    assert "_dynamo" not in vars(torch)


def test_functions_of_transformers_are_not_marked_for_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    marked = (
        "import torch\n"
        "@torch.compiler.disable\ndef one(): return 1\n"
        "@torch.compiler.disable(recursive=False)\ndef two(): return 2\n"
        "@torch._dynamo.allow_in_graph\ndef three(): return 3\n"
    )

    names = ran(marked)

    assert [names[name]() for name in ("one", "two", "three")] == [1, 2, 3]
    assert "torch._dynamo" not in sys.modules


PLAIN = {
    "expect_true": st.tuples(st.booleans()),
    "guard_or_false": st.tuples(st.booleans()),
    "guard_or_true": st.tuples(st.booleans()),
    "statically_known_true": st.tuples(st.booleans()),
    "guarding_hint_or_throw": st.tuples(st.booleans() | st.integers()),
    "has_guarding_hint": st.tuples(st.booleans() | st.integers()),
    "has_hint": st.tuples(st.booleans() | st.integers()),
    "size_hint": st.tuples(st.integers()),
    "is_nested_int": st.tuples(st.integers()),
    "sym_and": st.lists(st.booleans(), min_size=1),
    "sym_or": st.lists(st.booleans(), min_size=1),
    "sym_eq": st.tuples(st.lists(st.integers(0, 1), max_size=2), st.lists(st.integers(0, 1), max_size=2))
    | st.tuples(st.integers(0, 1), st.integers(0, 1)),
}  # fmt: skip


@given(st.data())
def test_numbers_and_shapes_are_answered_as_torch_answers_them(data: st.DataObject) -> None:
    known = [name for name in sorted(PLAIN) if hasattr(symbolic_shapes, name)]
    name = data.draw(st.sampled_from(known))  # of names that this torch has
    args = data.draw(PLAIN[name])

    answer = getattr(late._Symbols(late._SYMBOLS), name)(*args)

    assert answer == getattr(symbolic_shapes, name)(*args)


def test_all_that_is_answered_is_compared() -> None:
    assert set(PLAIN) == set(late._ANSWERS)


def test_a_transformers_that_does_not_like_it_is_imported_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: None, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "toyformers"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(f"from {TOY} import ONE_THIRD\nHALF = ONE_THIRD * 1.5\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(late, "_PACKAGE", "toyformers")
    monkeypatch.setattr(late, "_FIRST", ("toyformers.models",))
    monkeypatch.setattr(late._Window, "is_refused", False)

    import_transformers()

    assert "toyformers" not in sys.modules
    assert "imports.plain" in caplog.text
    with late_imports():  # as around the modules of each model that is loaded
        from toyformers.models import HALF  # type: ignore[import-not-found]

    assert HALF == 0.5
    del sys.modules["toyformers"], sys.modules["toyformers.models"]
