"""Long imports set off no search for garbage, and leave nothing behind that later ones would look through."""

import gc

import pytest

from llmhost.core.imports import long_import


@pytest.fixture(autouse=True)
def as_before() -> object:
    yield
    gc.unfreeze()


def test_nothing_is_collected_within_and_all_that_lives_is_frozen_after():
    before = gc.get_freeze_count()
    with long_import():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_a_failed_import_turns_collection_on_again():
    with pytest.raises(ModuleNotFoundError), long_import():
        import no_such_module_at_all  # noqa: F401
    assert gc.isenabled()


def test_collection_that_was_off_stays_off():
    gc.disable()
    try:
        with long_import():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
