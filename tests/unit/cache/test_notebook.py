"""What the cache has learnt is there for the next process, as far as it still fits."""

import asyncio
import hashlib
import sqlite3
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.cache.kept import KEYS, key, store

from llmhost.cache import alike
from llmhost.cache.alike import Kept
from llmhost.cache.keys import Keys
from llmhost.cache.learner import Kind
from llmhost.cache.response_cache import ResponseCache
from llmhost.cache.store import Meant
from llmhost.cache.trust import Check
from llmhost.cache.verify import FACTS_FORM, facts_of
from llmhost.config.schema.cache import CacheSettings, ModelCacheSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.storage.connect import StorageFailed
from llmhost.storage.learnt import LearntFile
from llmhost.testing import at

CLOCK = at("2026-01-01")
NOW_NS = CLOCK.utc_ns()
REFS = {"m": "m@1", "vectors": "vectors@1"}
KIND = Kind(signature="s", model="m@1", org="acme", form="chat")
VECTOR = np.array([0.6, 0.8], np.float32)


def opened(folder: Path, keys: Keys = KEYS, **own: Any) -> ResponseCache:
    own = {"embedder": "vectors", "min_similarity": 0.9, **own}
    models = {"m": ModelSpec(engine="fake", cache=ModelCacheSettings(**own))}
    learnt = LearntFile(folder / "learnt.db", node_id="node_1")
    return ResponseCache(CacheSettings(), models, store(), keys, CLOCK, Fraction(0), learnt)


def known_by(cache: ResponseCache) -> tuple[int, float | None, int]:
    """Policies, the threshold of acme's questions, and questions."""
    trust = cache.trusts.known("acme", "m@1")
    threshold = None if trust is None else round(trust.threshold, 3)
    return len(cache.learner.policies()), threshold, len(cache.alike)


def learn(cache: ResponseCache) -> None:
    for number in range(20):
        cache.learner.note(
            KIND, at_s=NOW_NS / 1e9, key=key(number=number % 2), value=9, size_bytes=9
        )
    cache.learner.learn(NOW_NS / 1e9)
    rules = cache.rules("m")
    cache.trusts.of("acme", "m@1", rules.alike, "vectors@1")
    cache.trusts.note("acme", "m@1", Check(0.95, False))
    facts = facts_of("how do I reset my secret password 7 times")
    assert facts is not None
    for number, left_s in ((1, 10), (2, 3600)):
        kept = Kept(key(number=number), facts, NOW_NS + left_s * 10**9, stored_ns=5)
        cache.alike.put("p", VECTOR, kept, NOW_NS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a node that has learnt something."""
    cache = opened(tmp_path)
    learn(cache)
    cache.close()
    return tmp_path


def again(folder: Path, refs: dict[str, str] = REFS, **facts: Any) -> ResponseCache:
    cache = opened(folder, **facts)
    cache.recall(refs)
    return cache


def test_policies_thresholds_and_questions_are_there_again(folder: Path):
    cache = again(folder)

    assert known_by(cache) == (1, 0.951, 2)
    assert cache.learner.created == 0
    facts = facts_of("tell me how do I reset my secret password 7 times")
    assert facts is not None
    [near, _] = cache.alike.find("p", VECTOR, facts, least=0.9, now_ns=NOW_NS)
    assert near.similarity == pytest.approx(1.0)
    assert near.kept.stored_ns == 5


def test_what_was_learnt_goes_on_from_there(folder: Path):
    cache = again(folder)
    cache.trusts.note("acme", "m@1", Check(0.97, False))
    cache.close()

    assert known_by(again(folder)) == (1, 0.971, 2)


def test_what_has_not_changed_is_not_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LearntFile, "write", lambda *_: pytest.fail("it was written"))
    again(folder).close()


@pytest.mark.parametrize(
    ("refs", "own", "known"),
    [
        ({"m": "m@2", "vectors": "vectors@1"}, {}, (0, None, 2)),
        ({"m": "m@1", "vectors": "vectors@2"}, {}, (1, None, 2)),
        (REFS, {"min_similarity": 0.99}, (1, None, 2)),
        ({}, {}, (0, None, 2)),
    ],
)
def test_what_was_learnt_of_another_model_or_under_other_terms_is_not_recalled(
    folder: Path, refs: dict[str, str], own: dict[str, Any], known: tuple[Any, ...]
):
    cache = again(folder, refs, **own)
    assert known_by(cache) == known  # a partition's name has its models and their files
    cache.close()
    assert known_by(again(folder)) == known


def test_questions_are_dropped_with_their_time(folder: Path):
    cache = opened(folder)
    CLOCK.advance(11)
    try:
        cache.recall(REFS)
    finally:
        CLOCK.advance(-11)
    assert len(cache.alike) == 1


def test_questions_whose_facts_are_found_otherwise_now_are_dropped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(alike.Alike, "form", "another")
    cache = again(folder)
    assert known_by(cache) == (1, 0.951, 0)


def test_another_nodes_rows_are_nothing(folder: Path):
    assert known_by(again(folder, keys=Keys(b"x" * 32))) == (0, None, 0)


def test_a_file_that_is_damaged_is_thrown_away(folder: Path):
    (folder / "learnt.db").write_bytes(b"no database at all" * 1000)
    cache = again(folder)
    assert known_by(cache) == (0, None, 0)
    learn(cache)
    cache.close()
    assert known_by(again(folder)) == (1, 0.951, 2)


EDITS = [
    "DROP TABLE things",
    "DROP TABLE things; CREATE TABLE things (x)",
    "DROP TABLE things; CREATE VIEW things AS SELECT 1 AS seq, 2 AS part, 3 AS name, 'x' AS value",
    "DROP TABLE things; CREATE TABLE things (seq INTEGER, part, name, value);"
    " INSERT INTO things VALUES (1, 'kinds', 's', 'a text')",
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_with_tables_of_somebody_elses_is_thrown_away(folder: Path, edit: str):
    with closing(sqlite3.connect(folder / "learnt.db")) as db:
        db.executescript(edit)

    cache = again(folder)
    assert known_by(cache) == (0, None, 0)
    learn(cache)
    cache.close()
    assert known_by(again(folder)) == (1, 0.951, 2)


def test_a_file_that_is_edited_while_it_is_used_is_a_disk_that_refuses(folder: Path):
    cache = again(folder)
    with closing(sqlite3.connect(folder / "learnt.db")) as db:
        db.executescript(EDITS[0])
    learn(cache)
    asyncio.run(cache.learn())
    assert cache.learner.changed, "it is tried again"


@pytest.mark.parametrize(
    ("meant", "known"),
    [
        (Meant(), (0, None, 0)),
        (Meant(model="m"), (0, None, 0)),
        (Meant(org="acme", model="m"), (0, None, 0)),
        (Meant(org="other"), (1, 0.951, 2)),
        (Meant(tag="nightly"), (1, 0.951, 2)),
    ],
)
def test_what_is_forgotten_is_not_recalled(folder: Path, meant: Meant, known: tuple[Any, ...]):
    cache = again(folder)
    asyncio.run(cache.purge(meant))
    assert known_by(cache) == known
    assert known_by(again(folder)) == known  # without its `close`, as after a kill
    words = b"".join(file.read_bytes() for file in folder.glob("learnt.db*"))
    assert (b"password" in words) == (known[2] > 0)


def test_what_the_disk_refuses_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = opened(tmp_path)
    learn(cache)
    with monkeypatch.context() as patch:
        patch.setattr(LearntFile, "write", refuses)
        asyncio.run(cache.learn())
        assert known_by(again(tmp_path)) == (0, None, 0)
    asyncio.run(cache.learn())
    assert known_by(again(tmp_path)) == (1, 0.951, 2)


def refuses(file: LearntFile, *_: Any) -> None:
    raise StorageFailed(file.path, OSError("full"))


SAMPLES = (
    "How many km is it from Berlin to Paris, and can't I go by train before 7:30 on Monday?",
    'what\'s the 2nd largest city of "old" Peru since 1950 -- never mind https://a.b/c_d',
    "Why does he increase the CO2 budget by 5 % every year, unlike his neighbours', and should it be so?",
)


def test_facts_of_another_form_have_another_number():
    facts = repr(
        [
            (f := facts_of(text)) and (f.exact, f.verbs, sorted(f.entities), f.words, f.length)
            for text in SAMPLES
        ]
    )
    mark = hashlib.blake2b(facts.encode(), digest_size=6).hexdigest()
    assert (FACTS_FORM, mark) == (2, "6490a5785ad3"), (
        "where facts are found otherwise, raise FACTS_FORM"
    )
