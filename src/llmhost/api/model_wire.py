"""What the admin API tells of models: declared ones, loaded ones, and their adapters, in pages."""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.api.admin_tenants import page_of


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A declared model. `state` is what it is doing, `reason` why; `files` says whether its files are here."""

    name: str
    version: int
    engine: str
    source: str | None
    aliases: list[str]
    state: str
    reason: str | None
    load: str
    adapters: dict[str, str]
    price: dict[str, str | None] | None
    files: str | None


class ModelPage(msgspec.Struct, frozen=True, kw_only=True):
    """Models as they are declared. The next page comes `after` `last_id`."""

    data: list[ModelRow]
    has_more: bool
    last_id: str | None


class LoadedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A replica of a model with its memory and load; or, with a reason, a model on its way or failed."""

    model: str
    state: str
    reason: str | UnsetType | None = UNSET
    device: str | UnsetType = UNSET
    weights_bytes: int | UnsetType = UNSET
    kv_bytes: int | UnsetType = UNSET
    predicted_bytes: int | UnsetType = UNSET
    measured_bytes: int | UnsetType | None = UNSET
    max_sequence_length: int | UnsetType = UNSET
    running: int | UnsetType = UNSET
    waiting: int | UnsetType = UNSET
    kv_blocks_used: int | UnsetType = UNSET
    kv_blocks_total: int | UnsetType = UNSET
    since_ns: int | UnsetType | None = UNSET
    load_s: float | UnsetType | None = UNSET
    attention: str | UnsetType | None = UNSET
    adapters: list[str] | UnsetType = UNSET


class LoadedPage(msgspec.Struct, frozen=True, kw_only=True):
    """Loaded models. The next page comes `after` `last_id`."""

    data: list[LoadedRow]
    has_more: bool
    last_id: str | None


class AdapterRow(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter: MODEL:NAME, where it is from, and what it takes while it is in memory."""

    adapter: str
    model: str
    source: str
    origin: str
    state: str
    bytes: int
    requests: int
    files: str | UnsetType | None = UNSET


class AdapterPage(msgspec.Struct, frozen=True, kw_only=True):
    """Adapters that requests can name. The next page comes `after` `last_id`."""

    data: list[AdapterRow]
    has_more: bool
    last_id: str | None


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a model that was told something."""

    model: str
    state: str
    reason: str | None
    took_s: float | None
    bytes: int


Rows = list[dict[str, Any]]


def model_page(rows: Rows, limit: int, after: str | None) -> ModelPage:
    page, has_more = page_of(rows, lambda row: str(row["name"]), limit, after)
    last = page[-1]["name"] if page else None
    return ModelPage(data=msgspec.convert(page, list[ModelRow]), has_more=has_more, last_id=last)


def loaded_page(rows: Rows, limit: int, after: str | None) -> LoadedPage:
    """Replicas are told apart by their place."""
    placed = [(f"{row['model']}/{place}", row) for place, row in enumerate(rows)]
    page, has_more = page_of(placed, lambda pair: pair[0], limit, after)
    data = msgspec.convert([row for _, row in page], list[LoadedRow])
    return LoadedPage(data=data, has_more=has_more, last_id=page[-1][0] if page else None)


def adapter_page(rows: Rows, limit: int, after: str | None) -> AdapterPage:
    page, has_more = page_of(rows, lambda row: str(row["adapter"]), limit, after)
    last = page[-1]["adapter"] if page else None
    return AdapterPage(
        data=msgspec.convert(page, list[AdapterRow]), has_more=has_more, last_id=last
    )
