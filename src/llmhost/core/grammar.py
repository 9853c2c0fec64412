"""What an answer must look like, before anything is compiled from it."""

import json
from dataclasses import dataclass, field

from llmhost.core.leaves import leaves


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must look like, as data.

    `kind` is json_schema, json_object, regex, lark, gbnf, choice, structural_tag, tool_calls or auto_calls.
    """

    kind: str
    text: str
    """The schema as JSON, the expression, the grammar, the choices as a JSON list, the tags as one (`trigger`, `begin`,
    `schema`, `end`), or for tool_calls an object:
    `tools`, each with name, parameters and strict, and `many`, whether a list of calls is wanted. Of auto_calls, which
    are held only from where a call begins, the `format` besides."""
    is_strict: bool = True
    """False lets a schema through that can only be enforced in part. Each of several tools says it of itself."""
    param: str | None = field(default=None, compare=False)
    """The field of the request that it came from, for errors."""

    @property
    def words(self) -> str:
        """The text as it is meant: JSON's escapes could hide a word."""
        if self.kind not in ("json_schema", "choice", "tool_calls", "structural_tag"):
            return self.text
        try:
            return "\n".join(leaves(json.loads(self.text)))
        except (ValueError, RecursionError):
            return self.text
