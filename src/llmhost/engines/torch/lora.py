"""LoRA adapters in the forward pass: many per batch, each row with its own or none.

A hook at each linear layer that some loaded adapter targets adds x[rows] @ A.T @ B.T * scale to the layer's output.
The layer itself computes the whole batch as ever, so rows without an adapter get the very bits that they get from the
model alone. A step with few adapters goes adapter by adapter; with more, the matrices of all loaded ones are multiplied
as one, and what is another adapter's is blotted out in between, so that the number of matrix products does not grow
with the number of adapters. Which token belongs to which adapter is worked out once per step, and comes from
a context variable as attention's view of the step does.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from llmhost.core.errors import EngineFailed, ModelUnavailable
from llmhost.core.step import Row
from llmhost.engines.torch.layout import StepLayout
from llmhost.engines.torch.lora_files import LoraFiles, LoraModule, read_adapter

ONE_BY_ONE = {"cpu": 1024, "cuda": 2}
"""Steps with up to so many adapters take them one after the other, by kind of device. On a GPU the number of products
counts, on the CPU the arithmetic, and what is blotted out was computed for nothing."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapter's matrices for one layer, or those of several below one another."""

    a: Tensor
    """[rank, inputs]"""
    b: Tensor
    """[rank, outputs]: B.T, the scale multiplied in."""


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """An adapter on the model's device, ready to be added. Opaque to everybody else."""

    pairs: Mapping[str, Pair]

    @property
    def size_bytes(self) -> int:
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.pairs.values())


@dataclass(frozen=True, slots=True)
class _Groups:
    """Which places of a layer's input belong to which adapter; in `of` None stands for all of them."""

    places: int
    of: Mapping[str, Tensor | None]
    adapted: Tensor
    """Places with any adapter."""
    owners: Tensor
    """For each of these the number of its adapter."""


@dataclass(frozen=True, slots=True)
class _Step:
    tokens: _Groups
    head: _Groups
    """For the layer that makes logits, which sees only the tokens whose logits are wanted."""


_current: ContextVar[_Step | None] = ContextVar("llmhost_lora_step", default=None)


class LoraAdapters:
    """The adapters of one loaded model. `read` may be called from any thread, the rest on the engine's."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._sites: dict[str, _Site] = {}
        self._loaded: dict[str, frozenset[str]] = {}
        """Names of the layers that each adapter targets."""
        self._numbers: dict[str, int] = {}
        self._next = itertools.count()

    def size_bytes(self, folder: Path) -> int:
        """What an adapter will take, from its headers. Raises ModelUnavailable."""
        item: int = self._model.dtype.itemsize
        return read_adapter(folder).parameters * item

    def read(self, folder: Path) -> LoraWeights:
        """An adapter's matrices on the model's device. Raises ModelUnavailable when it is not for this model."""
        files = read_adapter(folder)
        layers = {module.name: self._layer(files, module) for module in files.modules}
        try:
            tensors = load_file(files.weights)
        except Exception as error:  # safetensors has an error of its own, and the disk others
            raise ModelUnavailable(f"{files.weights} could not be read: {error}.") from error
        pairs = {}
        for module in files.modules:
            a = tensors[files.tensors[module.name, "A"]].float()
            b = tensors[files.tensors[module.name, "B"]].float().T * module.scale
            target = next(layers[module.name].parameters())  # `weight` may have to be unpacked
            a, b = (each.to(target.dtype).contiguous() for each in (a, b))
            if not (a.isfinite().all() and b.isfinite().all()):  # it could spread to other rows
                raise ModelUnavailable(
                    f"The adapter in {folder} can't be served: {module.name} has numbers in it that are not finite"
                    f" in {target.dtype}."
                )
            pairs[module.name] = Pair(a.to(target.device), b.to(target.device))
        return LoraWeights(pairs)

    def add(self, key: str, weights: LoraWeights) -> None:
        """From the next step on, rows that name `key` run with it."""
        self.drop(key)
        self._loaded[key] = frozenset(weights.pairs)
        self._numbers[key] = next(self._next)
        for name, pair in weights.pairs.items():
            if name not in self._sites:
                self._sites[name] = _Site(self._model, name)
            self._sites[name].add(key, self._numbers[key], pair)

    def drop(self, key: str) -> None:
        """Forget an adapter, and let go of layers that no other one targets. Unknown keys are ignored."""
        for name in self._loaded.pop(key, ()):
            site = self._sites[name]
            site.drop(key)
            if site.is_empty:
                site.close()
                del self._sites[name]
        self._numbers.pop(key, None)

    def missing(self, rows: Sequence[Row]) -> dict[int, EngineFailed]:
        """Rows, by their place, whose adapter is not here."""
        return {
            i: EngineFailed(f"The adapter {row.adapter!r} is not loaded any more. Ask again.")
            for i, row in enumerate(rows)
            if row.adapter is not None and row.adapter not in self._loaded
        }

    @contextmanager
    def step(self, rows: Sequence[Row], layout: StepLayout) -> Iterator[None]:
        """The forward pass in this block runs `rows`, in the order of `layout`, each with its adapter."""
        if all(row.adapter is None for row in rows):
            yield
            return
        tokens = self._groups(rows, layout)
        token = _current.set(_Step(tokens, tokens))
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def head_at(self, places: Tensor) -> Iterator[None]:
        """The layer that makes logits sees the step's tokens at `places` only, until the block ends."""
        step = _current.get()
        if step is None or not any(site.is_head for site in self._sites.values()):
            yield
            return
        token = _current.set(_Step(step.tokens, _at(step.tokens, places)))
        try:
            yield
        finally:
            _current.reset(token)

    def close(self) -> None:
        for key in list(self._loaded):
            self.drop(key)
        self._model = None

    def _groups(self, rows: Sequence[Row], layout: StepLayout) -> _Groups:
        """Sort the step's flat places by adapter, on the host, once for all layers."""
        found: dict[str, list[int]] = {}
        for at, row in enumerate(rows):
            if row.adapter is not None:
                here = range(layout.offsets[at], layout.offsets[at + 1])
                found.setdefault(row.adapter, []).extend(here)
        device = layout.input_ids.device
        total = layout.offsets[-1]
        adapted = [place for here in found.values() for place in here]
        owners = [self._numbers[key] for key, here in found.items() for _ in here]
        return _Groups(
            total,
            {
                key: None if len(here) == total else torch.tensor(here, device=device)
                for key, here in found.items()
            },
            torch.tensor(adapted, device=device),
            torch.tensor(owners, device=device),
        )

    def _layer(self, files: LoraFiles, module: LoraModule) -> Any:
        """The model's layer that a part of an adapter is for. Raises ModelUnavailable when there is none such."""
        kind = type(self._model).__name__
        try:
            layer = self._model.get_submodule(module.name)
        except AttributeError:
            raise ModelUnavailable(
                f"The adapter in {files.folder} is for another model: it adapts {module.name}, which this"
                f" {kind} does not have."
            ) from None
        if not isinstance(layer, nn.Linear | Conv1D):
            raise ModelUnavailable(
                f"The adapter in {files.folder} adapts {module.name}, which is a {type(layer).__name__} in this"
                f" {kind}; only linear layers can be adapted."
            )
        outputs, inputs = (
            (layer.out_features, layer.in_features)
            if isinstance(layer, nn.Linear)
            else layer.weight.T.shape
        )
        if (inputs, outputs) != (module.inputs, module.outputs):
            raise ModelUnavailable(
                f"The adapter in {files.folder} is for another model: its {module.name} goes from {module.inputs}"
                f" to {module.outputs} numbers, and this {kind}'s from {inputs} to {outputs}."
            )
        return layer


class _Site:
    """One layer of the model, and the adapters that target it, their matrices below one another."""

    def __init__(self, model: Any, name: str) -> None:
        layer: nn.Module = model.get_submodule(name)
        self.is_head = layer is model.get_output_embeddings()
        self._name = name
        self._handle: RemovableHandle = layer.register_forward_hook(self._adapt)
        self._numbers: dict[str, int] = {}
        self._pairs: dict[str, Pair] = {}
        """Views of `_all`: a matrix is in memory once."""
        self._all: Pair | None = None
        self._owners = torch.empty(0)
        """[ranks of all]: whose each line of `_all` is."""

    @property
    def is_empty(self) -> bool:
        return not self._pairs

    def add(self, key: str, number: int, pair: Pair) -> None:
        self._numbers[key] = number
        self._stack({**self._pairs, key: pair})

    def drop(self, key: str) -> None:
        del self._numbers[key]
        self._stack({name: pair for name, pair in self._pairs.items() if name != key})

    def close(self) -> None:
        self._handle.remove()

    def _stack(self, pairs: Mapping[str, Pair]) -> None:
        self._pairs, self._all = {}, None
        if not pairs:
            return
        stacked = Pair(
            torch.cat([pair.a for pair in pairs.values()]),
            torch.cat([pair.b for pair in pairs.values()]),
        )
        ranks = [len(pair.a) for pair in pairs.values()]
        owners = [self._numbers[key] for key, n in zip(pairs, ranks, strict=True) for _ in range(n)]
        views = zip(*(torch.split(each, ranks) for each in (stacked.a, stacked.b)), strict=True)
        self._pairs = {key: Pair(*view) for key, view in zip(pairs, views, strict=True)}
        self._all, self._owners = stacked, torch.tensor(owners, device=stacked.a.device)

    def _adapt(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        step = _current.get()
        if step is None or self._all is None:
            return output
        groups = step.head if self.is_head else step.tokens
        x, out = inputs[0].flatten(0, -2), output.flatten(0, -2)
        if len(x) != groups.places:
            raise EngineFailed(
                f"The layer {self._name} was run on {len(x)} of {groups.places} tokens: adapters can't be told apart"
                " in it."
            )
        if len(groups.of) > ONE_BY_ONE[x.device.type]:
            self._add_all(self._all, x, out, groups)
        else:
            self._add_each(x, out, groups)
        return out.view(output.shape)

    def _add_each(self, x: Tensor, out: Tensor, groups: _Groups) -> None:
        for key, places in groups.of.items():
            if (pair := self._pairs.get(key)) is None:
                continue
            if places is None:
                out.addmm_(F.linear(x, pair.a), pair.b)
            else:
                out.index_add_(0, places, F.linear(x[places], pair.a) @ pair.b)

    def _add_all(self, every: Pair, x: Tensor, out: Tensor, groups: _Groups) -> None:
        inner = F.linear(x[groups.adapted], every.a)
        # Not multiplied by zero: what another's matrix makes of a row may be infinite.
        inner.masked_fill_(groups.owners[:, None] != self._owners, 0)
        out.index_add_(0, groups.adapted, inner @ every.b)


def _at(groups: _Groups, places: Tensor) -> _Groups:
    """The same for those of the step's places that a layer sees, in its order."""
    is_same = groups.adapted[:, None] == places
    which, adapted = is_same.nonzero(as_tuple=True)
    return _Groups(
        len(places),
        {
            key: None if here is None else torch.isin(places, here).nonzero().flatten()
            for key, here in groups.of.items()
        },
        adapted,
        groups.owners[which],
    )
