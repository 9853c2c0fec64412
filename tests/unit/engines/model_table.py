"""The tables of docs/models.md: what becomes of each causal language model that transformers knows.

Each architecture is made small and random, saved, and loaded as its users would do it. What loads must answer as
transformers' generate does; what is refused stands in the table with its reason.

    python -m tests.unit.engines.model_table      writes the tables into docs/models.md
"""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.unit.engines.checkpoints import VARIANTS, config_of, save_checkpoint
from tests.unit.engines.parity import in_chunks_of_16, reference
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.torch.load import load_runner, refuse_architecture
from llmhost.engines.torch.runner import TorchRunner

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
HEAVY_PARAMETERS = 40_000_000

SERVED = ("Architecture", "Model types", "With")
REFUSED = ("Architecture", "Model types", "Why")
UNTRIED = ("Architecture", "Model types")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one family: features if it is served, or a reason; neither if it could not be tried."""

    features: tuple[str, ...] | None = None
    reason: str | None = None


def architectures() -> dict[str, list[str]]:
    """Names of classes, and the model types that lead to each."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found[name if isinstance(name, str) else name[0]].append(kind)
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def families(kinds: Iterable[str]) -> list[str]:
    """The families to try for an architecture: its model types, and variants of them."""
    variants = [name for name, (kind, _) in VARIANTS.items() if kind in kinds and name != kind]
    return [*kinds, *variants]


def judge(family: str) -> Verdict:
    """Make a family, load it and compare it with transformers."""
    transformers.utils.logging.set_verbosity_error()
    kind = VARIANTS.get(family, (family, {}))[0]
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    try:
        refuse_architecture(str(name), CONFIG_MAPPING[kind](), TorchOptions())
    except ModelUnavailable as error:
        return Verdict(reason=_shortened(str(error)))
    except Exception:  # noqa: BLE001 - not even a usual config of it can be made
        return Verdict()
    with tempfile.TemporaryDirectory() as folder:
        if not _is_made(Path(folder), family):
            return Verdict()
        try:
            runner = load_runner(
                Path(folder), block_tokens=16, options=TorchOptions(device="cpu", dtype="float32")
            )
        except ModelUnavailable as error:
            return Verdict(reason=_shortened(str(error).replace(folder, "FOLDER")))
        score = in_chunks_of_16(runner, reference(Path(folder)))
    assert not score.wrong, f"{family} is served and gives other tokens: {score.wrong}"
    return Verdict(features=_features(runner))


def _is_made(folder: Path, family: str) -> bool:
    """False where transformers makes no small model of a family without more settings or libraries than these."""
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config_of(family))
        if sum(tensor.numel() for tensor in model.parameters()) > HEAVY_PARAMETERS:
            return False
        save_checkpoint(folder, family)
    except Exception:  # noqa: BLE001 - each of these classes fails in its own way on settings it can't use
        return False
    return True


def _features(runner: TorchRunner) -> tuple[str, ...]:
    model: Any = runner._model
    config = model.config.get_text_config()
    windows = set(runner.windows)
    names = [name for name, _ in model.named_parameters()]
    found = {
        "sliding window": windows != {None} and None not in windows,
        "sliding window in some layers": len(windows) > 1,
        "attention sinks": any(name.endswith("sinks") for name in names),
        "soft-capped scores": getattr(config, "attn_logit_softcapping", None) is not None,
        "experts": any("expert" in name for name in names),
    }
    return tuple(name for name, is_there in found.items() if is_there)


_FORMS = (
    r"The model in FOLDER (.*), which the torch engine does not serve yet\.",
    r"\w+ in FOLDER can't be run by the torch engine: (.*)\.",
    r"\w+ in FOLDER (gives other logits .* than transformers does) .*",
    r"\w+ (computes attention in its own code) .*",
    r"The model in FOLDER (could not be loaded: .*)",
    r"FOLDER/(config\.json has .*)\.",
    r"FOLDER holds a \w+, which (does not generate text) .*",
    r"\w+ (can't be asked for .*)\.",
)


def _shortened(message: str) -> str:
    """What is particular in a refusal."""
    for form in _FORMS:
        if found := re.fullmatch(form, message, re.DOTALL):
            return re.sub(r"relative difference [\d.]+", "", found[1])
    return message


# ---------------------------------------------------------------- the page

Row = tuple[str, ...]


def rows_of(name: str, kinds: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """An architecture's lines, each with the table that it belongs to."""
    verdicts = {family: judge(family) for family in families(kinds)}
    types = ", ".join(f"`{kind}`" for kind in kinds)
    tried = {family: one for family, one in verdicts.items() if one != Verdict()}
    features = {feature for one in tried.values() for feature in one.features or ()}
    if "sliding window in some layers" in features:
        features.discard("sliding window")
    if any(one.features is not None for one in tried.values()):
        yield "served", (f"`{name}`", types, ", ".join(sorted(features)))
    reasons = defaultdict(list)
    for family, one in tried.items():
        if one.reason is not None:
            reasons[one.reason].append(family)
    for reason, of in reasons.items():
        yield "refused", (f"`{name}`", ", ".join(f"`{family}`" for family in of), reason)
    if not tried:
        yield "untried", (f"`{name}`", types)


def table(columns: Row, rows: Iterable[Row]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def tables(found: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    heads = {"served": SERVED, "refused": REFUSED, "untried": UNTRIED}
    return {name: table(columns, found.get(name, ())) for name, columns in heads.items()}


def survey() -> dict[str, str]:
    """All three tables, made anew. Takes some minutes."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for name, kinds in architectures().items():
        for where, row in rows_of(name, kinds):
            found[where].append(row)
    return tables(found)


_MARKED = r"(<!-- {name}: made by tests/unit/engines/model_table.py -->\n)(.*?)(<!-- end -->)"


def written(name: str) -> str:
    """The table of that name as the page has it."""
    found = re.search(_MARKED.format(name=name), PAGE.read_text(), re.DOTALL)
    assert found, f"docs/models.md has no place for the table {name!r}"
    return found[2]


def write(made: Mapping[str, str]) -> None:
    text = PAGE.read_text()
    for name, lines in made.items():
        text = re.sub(
            _MARKED.format(name=name),
            lambda found, lines=lines: found[1] + lines + found[3],
            text,
            flags=re.DOTALL,
        )
    PAGE.write_text(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(survey())
