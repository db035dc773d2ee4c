"""Garbage collection around what a parser makes: it is passed over, and nothing lasts."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from weakref import WeakSet

import pytest

from ladon_storage.collection import garbage
from ladon_storage.collection.garbage import note_made, objects_set_aside, uncollected


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """Collect garbage by the usual rules, whatever a test before this one froze or left."""
    gc.unfreeze()
    gc.collect()
    yield
    gc.unfreeze()
    gc.enable()


class Cycle:
    """An object that only the collector can end."""

    def __init__(self) -> None:
        self.itself = self


def made() -> list[list[int]]:
    """Return many objects; Python takes some from its stock of lists, and counts fewer."""
    with uncollected():
        return [[each] for each in range(2 * garbage._MANY)]


def test_collection_is_off_inside_alone() -> None:
    """An error inside turns it on again, as the end does."""
    collects = []
    with suppress(ZeroDivisionError), uncollected():
        collects.append(gc.isenabled())
        raise ZeroDivisionError
    collects.append(gc.isenabled())

    assert collects == [False, True]


def test_collection_that_the_program_turned_off_stays_off() -> None:
    """The program decides whether there is any."""
    gc.disable()
    with uncollected():
        pass

    assert not gc.isenabled()


def test_collection_is_on_after_threads_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that found it off, because the other was inside, must not turn it off afterwards."""
    other = uncollected()
    other.__enter__()
    is_enabled = gc.isenabled

    def while_the_other_ends() -> bool:
        monkeypatch.undo()
        found = is_enabled()
        other.__exit__(None, None, None)
        return found

    monkeypatch.setattr(gc, "isenabled", while_the_other_ends)
    with uncollected():
        pass

    assert gc.isenabled()


def test_many_objects_are_set_aside_in_a_run_alone() -> None:
    """Elsewhere nothing ends what was frozen; a run does at its end."""
    kept = made()
    assert not gc.get_freeze_count()
    with objects_set_aside():
        kept += made()
        before = gc.get_freeze_count()
        kept += made()
        assert gc.get_freeze_count() >= before + garbage._MANY > 2 * garbage._MANY

    assert not gc.get_freeze_count()


def test_run_that_makes_few_objects_leaves_collection_as_it_is() -> None:
    """A thousand short runs would end as many searches of the program before they are due."""
    counted = list[tuple[int, int, int]]()
    with objects_set_aside():
        with uncollected():
            kept = [[each] for each in range(garbage._MANY // 2)]
        note_made(len(kept))
        counted.append(gc.get_count())
        assert not gc.get_freeze_count()

    # Far from a number at which Python searches by itself.
    assert gc.get_count()[1:] == counted[0][1:]


def test_documents_of_few_objects_leave_what_others_made_where_it_is() -> None:
    """Each would set aside the cycles of the runs before, and nothing would search them."""
    young = [[each] for each in range(garbage._MANY)]
    with objects_set_aside():
        with uncollected():
            young += [[each] for each in range(10)]
        assert not gc.get_freeze_count()
        kept = made()
        before = gc.get_freeze_count()
        assert before
        with uncollected():
            young += [[each] for each in range(10)]
        assert gc.get_freeze_count() <= before < before + len(kept)


def test_objects_of_documents_do_not_count_as_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no garbage: what is made beside them decides when all is searched."""
    monkeypatch.setattr(garbage, "_BETWEEN_RUNS", 3 * garbage._MANY)
    monkeypatch.setattr(garbage, "_OF_ALL", 1_000_000)
    monkeypatch.setattr(garbage, "_passed_over_by_runs", 0)
    collected = list[int]()
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    kept = []
    for _ in range(10):
        with objects_set_aside():
            kept.append(made())
    assert not collected


@pytest.mark.slow
def test_records_that_a_run_did_not_make_do_not_hide_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page of columns is a few objects, and the same records may be delivered again."""
    monkeypatch.setattr(garbage, "_BETWEEN_RUNS", 1_000)
    monkeypatch.setattr(garbage, "_OF_ALL", 1_000_000)
    monkeypatch.setattr(garbage, "_passed_over_by_runs", 0)
    cycles = WeakSet[Cycle]()
    for _ in range(100):
        with objects_set_aside():
            for _ in range(25):
                cycles.add(Cycle())
            note_made(10 * garbage._MANY)
    assert len(cycles) <= 1_000


def test_run_that_a_collection_ends_while_objects_are_set_aside_leaves_none_frozen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An abandoned run ends in whatever thread collects it, also in the middle of this."""
    abandoned = objects_set_aside()
    abandoned.__enter__()
    freeze = gc.freeze

    def freeze_and_end() -> None:
        monkeypatch.undo()
        abandoned.__exit__(None, None, None)
        freeze()

    monkeypatch.setattr(gc, "freeze", freeze_and_end)
    note_made(garbage._MANY)
    assert not gc.get_freeze_count()
    assert not garbage._are_set_aside


def test_records_of_a_source_with_a_parser_of_its_own_are_set_aside() -> None:
    """The engine counts what it is given."""
    with objects_set_aside():
        note_made(garbage._MANY - 1)
        assert not gc.get_freeze_count()
        note_made(garbage._MANY)
        before = gc.get_freeze_count()
        assert before
        kept = [[each] for each in range(100)]
        note_made(2 * garbage._MANY)
        assert gc.get_freeze_count() <= before < before + len(kept)

    assert not gc.get_freeze_count()


def test_objects_of_a_program_that_froze_some_are_left_alone() -> None:
    """What it froze stays frozen, and no more."""
    gc.freeze()
    before = gc.get_freeze_count()
    with objects_set_aside():
        kept = made()

    assert gc.get_freeze_count() <= before < before + len(kept)


@pytest.mark.slow
def test_cycles_that_are_set_aside_are_collected_in_a_long_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run of many pages does not grow by what each leaves behind."""
    documents = 20
    monkeypatch.setattr(garbage, "_INTERVAL", documents * garbage._MANY)
    cycles = WeakSet[Cycle]()
    with objects_set_aside():
        for _ in range(2 * documents):
            cycles.add(Cycle())
            made()
        assert len(cycles) <= documents


@pytest.mark.slow
def test_cycles_of_many_runs_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run sets aside what the one before left, long before Python would search it."""
    runs, each = 40, 100
    monkeypatch.setattr(garbage, "_BETWEEN_RUNS", 10 * each)
    monkeypatch.setattr(garbage, "_OF_ALL", 1_000_000)
    monkeypatch.setattr(garbage, "_passed_over_by_runs", 0)
    cycles = WeakSet[Cycle]()
    for _ in range(runs):
        for _ in range(each // 4):
            cycles.add(Cycle())
        with objects_set_aside():
            note_made(garbage._MANY)
            for _ in range(each // 4):
                cycles.add(Cycle())
    assert len(cycles) <= runs * each // 4
    assert not gc.get_freeze_count()


def test_program_of_many_objects_is_searched_for_a_part_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The search would take longer than the runs; and what the program turned off stays off."""
    monkeypatch.setattr(garbage, "_BETWEEN_RUNS", 1_000)
    monkeypatch.setattr(garbage, "_passed_over_by_runs", 0)
    monkeypatch.setattr(gc, "get_count", lambda: (700, 0, 0))
    collected = list[int]()
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))

    def run() -> None:
        with objects_set_aside():
            note_made(garbage._MANY)
            cycles = [Cycle() for _ in range(700)]
        del cycles

    for _ in range(3):
        run()
    assert not collected
    monkeypatch.setattr(garbage, "_OF_ALL", 1_000_000)
    thresholds = gc.get_threshold()
    gc.set_threshold(0)
    try:
        run()
    finally:
        gc.set_threshold(*thresholds)
    assert not collected
    run()
    assert collected
