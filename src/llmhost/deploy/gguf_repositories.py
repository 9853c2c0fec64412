"""Which of a repository's GGUF files is meant: it has one for each quantisation, and each may be in parts. Pure."""

import re
from collections.abc import Iterable

from llmhost.config.sources import HubSource
from llmhost.core.errors import ModelUnavailable

USUAL = "Q4_K_M"
"""What is taken where nobody says otherwise: a quarter of 16 bits, and near to them in what it says."""

_PART = re.compile(r"-\d{5}-of-\d{5}$")
_QUANTISATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d_0|MXFP4\w*|BF16|F16|FP16|F32|FP32))$", re.IGNORECASE
)
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""Files beside a model: its eyes, and what its weights were weighed by."""


def gguf_names(names: Iterable[str]) -> list[str]:
    """The models among a repository's files."""
    return [n for n in names if n.lower().endswith(".gguf") and not _NO_MODEL.search(n)]


def choose_gguf(names: Iterable[str], source: HubSource) -> list[str]:
    """The file that `source` means, or its parts. Raises ModelUnavailable and says what there is."""
    models: dict[str, list[str]] = {}
    for name in gguf_names(names):
        models.setdefault(_stem(name), []).append(name)
    found = _picked(models, source.pick) if source.pick else _usual(models)
    if len(found) == 1:
        return sorted(models[found[0]])
    have = ", ".join(quantisations(stem for stem in models))
    if not models:
        what = "has no GGUF file"
    elif source.pick:
        what = f"has {len(found) or 'no'} GGUF files for {source.pick!r}; there is: {have}"
    else:
        what = f"has several GGUF files and none is {USUAL}; name one of them as in 'hf:{source}:{have.split(', ')[0]}'"
        what += f" ({have})"
    raise ModelUnavailable(f"{source.repository!r} {what}.")


def quantisations(names: Iterable[str]) -> list[str]:
    """How each can be picked: by its quantisation, or else by its path."""
    picks = {}
    for name in names:
        stem = _stem(name)
        picks[_quantisation(stem) or f"{stem}.gguf"] = True
    return list(picks)


def _stem(name: str) -> str:
    return _PART.sub("", name[: -len(".gguf")] if name.lower().endswith(".gguf") else name)


def _quantisation(stem: str) -> str | None:
    match = _QUANTISATION.search(stem)
    return match[1].upper() if match else None


def _picked(models: Iterable[str], pick: str) -> list[str]:
    """A path counts first, then a quantisation, then how a name ends."""
    if pick.lower().endswith(".gguf"):
        wanted = _stem(pick)
        exact = [stem for stem in models if stem == wanted]
        return exact or [stem for stem in models if stem.rpartition("/")[2] == wanted]
    exact = [stem for stem in models if _quantisation(stem) == pick.upper()]
    return exact or [
        stem for stem in models if re.search(rf"(^|[-._/]){re.escape(pick)}$", stem, re.IGNORECASE)
    ]


def _usual(models: Iterable[str]) -> list[str]:
    stems = list(models)
    return stems if len(stems) == 1 else [s for s in stems if _quantisation(s) == USUAL]
