"""The smaller model that guesses for a larger one: what it is called, and whether the two speak the same language."""

import msgspec

from llmhost.config.schema.models import ModelSpec, SpeculationSettings
from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import Tokenizer
from llmhost.core.sequence import ModelRef
from llmhost.deploy.catalogue import ModelEntry

COMPARED_IDS = 4096
"""So many ids of two vocabularies are compared, evenly spread: two tokenizers of one size differ in most."""


def draft_holder(holder: str) -> str:
    """Under what name a model's smaller one leases memory."""
    return f"draft of {holder}"


def draft_entry(entry: ModelEntry) -> ModelEntry | None:
    """The smaller model as an entry of its own, with room for the sequences that it guesses for; None without one.

    Its weights are as they are loaded: it is small, and what it guesses is worth more than the memory.
    """
    settings = entry.spec.speculation
    if settings.method != "draft" or settings.draft is None:
        return None
    spec = msgspec.structs.replace(
        entry.spec,
        source=settings.draft,
        kv_memory=settings.kv_memory,
        kv_host_memory=None,
        adapters={},
        max_batch_size=min(settings.max_sequences, entry.spec.max_batch_size),
        speculation=SpeculationSettings(method="off"),
        options={name: value for name, value in entry.spec.options.items() if name != "weights"},
    )
    return ModelEntry(ModelRef(draft_holder(entry.name), entry.ref.version), spec, entry.created_s)


def check_same_words(spec: ModelSpec, large: Tokenizer, small: Tokenizer) -> None:
    """Raises ModelUnavailable, with what differs, unless both tokenizers mean the same by their ids."""
    difference = _difference(large, small)
    if difference is not None:
        raise ModelUnavailable(
            f"The draft model {spec.speculation.draft!r} has another tokenizer than {spec.source!r}: {difference}."
            " Take one of the same family, or speculation.method = 'ngram'."
        )


def _difference(large: Tokenizer, small: Tokenizer) -> str | None:
    if large.vocab_size != small.vocab_size:
        return f"{large.vocab_size} tokens against {small.vocab_size}"
    if large.eos_ids != small.eos_ids:
        return f"answers end with ids {sorted(large.eos_ids)} against {sorted(small.eos_ids)}"
    for token in range(0, large.vocab_size, max(large.vocab_size // COMPARED_IDS, 1)):
        mine, its = (t.decode([token], skip_special_tokens=False) for t in (large, small))
        if mine != its:
            return f"id {token} is {mine!r} against {its!r}"
    return None
