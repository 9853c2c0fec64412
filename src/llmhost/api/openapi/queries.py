"""Queries and forms that handlers read themselves: of OpenAI's routes for an organisation, and of uploads."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llmhost.api.openapi.operation import Parameter

SECONDS = {"type": "integer", "minimum": 0, "maximum": 4_102_444_800}
NAMES = {"type": "array", "items": {"type": "string"}}


Bytes = Annotated[str, Meta(extra_json_schema={"format": "binary"})]


class NewFile(msgspec.Struct, kw_only=True):
    """The form of POST /v1/files."""

    file: Bytes
    purpose: str
    expires_after: dict[str, Any] | UnsetType = UNSET


def _usage(widths: list[str], most: int, groups: list[str], *lists: str) -> tuple[Parameter, ...]:
    listed: dict[str, Any] = {"type": "array", "items": {"enum": groups}}
    return (
        Parameter(
            name="start_time", about="In seconds, inclusive.", schema=SECONDS, is_required=True
        ),
        Parameter(name="end_time", about="In seconds, exclusive.", schema=SECONDS),
        Parameter(name="bucket_width", schema={"enum": widths, "default": "1d"}),
        Parameter(name="limit", schema={"type": "integer", "minimum": 1, "maximum": most}),
        Parameter(name="page", about="`next_page` of the page before."),
        Parameter(name="group_by", schema=listed),
        *(Parameter(name=name, schema=NAMES) for name in lists),
    )


WIDTHS = ["1m", "1h", "1d"]
GROUPS = ["project_id", "user_id", "api_key_id", "model", "batch", "service_tier"]

QUERIES = {
    "/v1/organization/usage/completions": _usage(
        WIDTHS, 31, GROUPS, "project_ids", "user_ids", "api_key_ids", "models"
    ),
    "/v1/organization/usage/embeddings": _usage(
        WIDTHS, 31, GROUPS[:4], "project_ids", "user_ids", "api_key_ids", "models"
    ),
    "/v1/organization/usage/{kind}": _usage(WIDTHS, 31, GROUPS),
    "/v1/organization/costs": _usage(
        ["1d"], 180, ["project_id", "api_key_id", "line_item"], "project_ids", "line_items"
    ),
}
"""By path."""
