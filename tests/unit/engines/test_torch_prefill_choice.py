"""Who attends to prompts: a library only where it is there, covers the layers, and has proved right."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tests.unit.kernels.interpreting  # noqa: F401
import torch
from tests.unit.kernels import attention_doubles as doubles
from torch import Tensor

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch.backend_torch import Scores
from llmhost.engines.torch.kv import KeyValue
from llmhost.engines.torch.prefill import OWN, Form, Kind, PrefillAttention, PrefillRows
from llmhost.engines.torch.prefill_choice import ACCEPTABLE, Choice, Model, choose, imports_of
from llmhost.engines.torch.prefill_trial import MOST_WINDOW, Trial

CPU, HALF = torch.device("cpu"), torch.float16
FA3, FLASHINFER = "flash_attention_3", "flashinfer"
FORM = Form(heads=4, kv_heads=2, dim=64, block_tokens=16, dtype=HALF, stored=HALF)
PLAIN, WINDOW, CAPPED = Scores(0.125), Scores(0.125, window=20), Scores(0.2, softcap=5.0)
SINKS = Scores(0.125, window=20, sinks=torch.zeros(4))


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install_fa3(monkeypatch)
    doubles.install_flashinfer(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """On a Hopper; FlashInfer has compiled something before."""
    kernels = tmp_path / ".cache/flashinfer/0.7/90a/cached_ops/batch_prefill_with_kv_cache_x"
    kernels.mkdir(parents=True)
    (kernels / "x.so").touch()
    return Model(
        name="mine",
        form=FORM,
        layers=[PLAIN, WINDOW, WINDOW],
        device=CPU,
        capability=(9, 0),
        environ={"FLASHINFER_WORKSPACE_BASE": str(tmp_path)},
    )


@pytest.fixture(autouse=True)
def any_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llmhost.engines.attention_libraries.installed_version", lambda library: None
    )


def refusal(option: str, model: Model) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        choose(option, model)
    return caught.value.message


def spoil(out: Tensor) -> None:
    out.mul_(1.05)


def leave_a_row(out: Tensor) -> None:
    out[-1] = torch.nan


def fail(out: Tensor) -> None:
    raise RuntimeError("no kernel image is available\nmore")


def test_without_libraries_our_kernels_attend(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.remove(monkeypatch)
    choice = choose("auto", model)
    assert choice == Choice(None, {FA3: "not installed", FLASHINFER: "not installed"})
    assert "flash_attention_3\" can't be had for mine: not installed" in refusal(FA3, model)


@pytest.mark.usefixtures("both")
def test_the_first_library_that_is_for_a_gpu_is_taken(model: Model) -> None:
    assert choose("auto", model).name == FA3
    for capability in ((8, 9), (10, 0)):
        choice = choose("auto", replace(model, capability=capability))
        assert choice.name == FLASHINFER
        assert "made for compute capability 9.0" in choice.why[FA3]
    assert choose("auto", replace(model, capability=(7, 5))).name == "triton"
    assert choose("triton", model) == Choice(None)
    assert choose(FLASHINFER, model).name == FLASHINFER


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("twist", [spoil, leave_a_row, fail])
def test_a_library_that_is_wrong_or_fails_does_not_attend(
    model: Model, twist: doubles.Twist
) -> None:
    with doubles.twisting(FA3, twist):
        choice = choose("auto", model)
        assert choice.name == FLASHINFER
        assert "wrong by" in choice.why[FA3] or "it fails (no kernel image is av" in choice.why[FA3]
        with doubles.twisting(FLASHINFER, twist):
            assert choose("auto", model).prefill is None
        assert 'Leave it at "auto"' in refusal(FA3, model)


@pytest.mark.usefixtures("both")
def test_layers_that_a_library_lacks_something_for_stay_with_us(model: Model) -> None:
    prefill = choose("auto", replace(model, layers=[PLAIN, SINKS])).prefill
    assert prefill is not None
    assert prefill.for_layer(PLAIN) is prefill.library
    assert prefill.for_layer(PLAIN._replace(scaling=None)) is prefill.library
    assert prefill.for_layer(SINKS) is prefill.for_layer(CAPPED) is OWN
    assert "attention sinks" in refusal(FA3, replace(model, layers=[SINKS]))


@pytest.mark.usefixtures("both")
def test_a_narrow_cache_is_for_our_kernels(model: Model) -> None:
    narrow = replace(model, form=replace(FORM, stored=torch.float8_e4m3fn))
    choice = choose("auto", narrow)
    assert choice.prefill is None and "KV cache of the computation type" in choice.why[FA3]


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[bool, bool]]]:
    """The form with a window has not been compiled."""
    monkeypatch.setattr(doubles, "unbuilt", {(True, False)})
    yield doubles.unbuilt


@pytest.mark.usefixtures("both")
def test_nothing_is_compiled_unless_it_is_asked_for(
    model: Model, unbuilt: set[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llmhost.engines")
    ampere = replace(model, capability=(8, 0))
    prefill = choose("auto", ampere).prefill
    assert prefill is not None and prefill.kinds == {Kind.of(PLAIN)}
    assert "not compiled" in choose("auto", replace(ampere, layers=[WINDOW])).why[FLASHINFER]
    assert "attention.compiling" not in caplog.text

    prefill = choose(FLASHINFER, ampere).prefill
    assert prefill is not None and prefill.kinds == {Kind.of(PLAIN), Kind.of(WINDOW)}
    said = [record.message for record in caplog.records]
    assert said[-3:] == ["attention.compiling", "attention.compiled", "attention.chosen"]


@pytest.mark.usefixtures("both")
def test_a_library_without_any_kernels_is_not_even_imported(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("llmhost.engines.torch.prefill_choice.FlashInfer", fail)
    bare = replace(model, capability=(8, 0), environ={"FLASHINFER_WORKSPACE_BASE": "/nowhere"})
    assert "not compiled" in choose("auto", bare).why[FLASHINFER]


@pytest.mark.usefixtures("both")
def test_what_is_imported_ahead_is_what_will_be_tried(model: Model) -> None:
    def ahead(option: str, capability: tuple[int, int], **environ: str) -> list[str]:
        given = {**model.environ, **environ}
        return [done().__name__ for done in imports_of(option, capability, given)]  # type: ignore[attr-defined]

    assert ahead("auto", (9, 0)) == ["flash_attn_interface"]
    assert ahead("auto", (8, 0)) == ["flashinfer"]
    bare = {"FLASHINFER_WORKSPACE_BASE": "/nowhere"}
    assert ahead("auto", (8, 0), **bare) == ahead("triton", (9, 0)) == []
    assert ahead("flashinfer", (8, 0), **bare) == ["flashinfer"]


@pytest.mark.usefixtures("both")
def test_what_was_chosen_is_said_once_with_its_reasons(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llmhost.engines")
    choose("auto", replace(model, layers=[PLAIN, SINKS, SINKS], capability=(8, 0)))
    (record,) = caplog.records
    assert record.facts == {  # type: ignore[attr-defined]
        "model": "mine",
        "prefill": "flashinfer",
        "decode": "triton",
        "prefill_of_other_layers": "triton_in_2",
        "why": "flash_attention_3: made for compute capability 9.0, and this GPU has 8.0",
    }


class Faulty:
    """Our own kernel, with something else asked of it."""

    name = "faulty"

    def __init__(self, change: Callable[[PrefillRows, Scores], tuple[PrefillRows, Scores]]) -> None:
        self._change = change

    def refusal(self, kind: Kind) -> None:
        return None

    def is_built(self, kind: Kind) -> bool:
        return True

    def attend(
        self, rows: PrefillRows, query: Tensor, cache: KeyValue, scores: Scores, out: Tensor
    ) -> None:
        rows, scores = self._change(rows, scores)
        exact = Trial(rows, query, cache, scores).exact()
        out.copy_(exact)


FAULTS: dict[str, Callable[[PrefillRows, Scores], tuple[PrefillRows, Scores]]] = {
    "a window that is one short": lambda rows, scores: (rows, scores._replace(window=scores.window - 1)),
    "no window": lambda rows, scores: (rows, scores._replace(window=None)),
    "no soft cap": lambda rows, scores: (rows, scores._replace(softcap=None)),
    "another scale": lambda rows, scores: (rows, scores._replace(scaling=None)),
    "rows of which each sees one token more": lambda rows, scores: (
        replace(rows, ends=[end + 1 for end in rows.ends], starts=[start + 1 for start in rows.starts]),
        scores,
    ),
    "blocks in order": lambda rows, scores: (
        replace(rows, block_tables=rows.block_tables.sort(1).values), scores
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_trial_notices(fault: str) -> None:
    trial = Trial.of(FORM, Scores(0.3, window=20, softcap=1.0), CPU)
    good: PrefillAttention = Faulty(lambda rows, scores: (rows, scores))
    assert trial.error_of(good) < ACCEPTABLE[HALF] / 2
    assert not trial.error_of(Faulty(FAULTS[fault])) < ACCEPTABLE[HALF]


def test_a_large_window_is_tried_as_a_smaller_one() -> None:
    trial = Trial.of(replace(FORM, heads=2, kv_heads=1), Scores(window=30_000), CPU)
    assert trial.scores.window == MOST_WINDOW < max(trial.rows.starts)
