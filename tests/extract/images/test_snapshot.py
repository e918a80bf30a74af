"""Splits: decided by an image's bytes or group alone; copies and conflicts never leak."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.images import (
    FileStats,
    ImageRow,
    Snapshot,
    assign_splits,
    position,
    unit_of,
    units_of_classes,
)
from extract.images.splits import has_given_test
from extract.leaks import Leak, leaked_copies, leaked_groups


def row(path: str, content: str, label: str | None = "a", **given_: object) -> ImageRow:
    key = hashlib.sha256(content.encode()).digest()
    values = {"group": None, "split": None, "note": "", "readable": True}
    stats = FileStats(1, 2, 3, 4)
    return ImageRow(path=path, key=key, label=label, stats=stats, **{**values, **given_})


def splits(rows: tuple[ImageRow, ...]) -> dict[str, str | None]:
    return {r.path: r.split for r in rows}


def many(count: int, start: int = 0) -> list[ImageRow]:
    return [row(f"{n:04d}", str(n), "ab"[n % 2]) for n in range(start, start + count)]


@settings(deadline=None, max_examples=30)
@given(st.integers(30, 120), st.integers(1, 60), st.integers(0, 5))
def test_adding_images_never_moves_another(count: int, more: int, seed: int) -> None:
    before = splits(assign_splits(many(count), seed))
    after = splits(assign_splits(many(count + more), seed))
    # the one exception: a class without a test row had given up its lowest hash
    tested = {
        label
        for n, label in enumerate("ab")
        if "test" in [before[f"{i:04d}"] for i in range(n, count, 2)]
    }
    natural = {p for p, s in before.items() if s == "test"}
    assert tested == {"a", "b"}
    moved = {path for path in before if before[path] != after[path]}
    assert len(moved) <= 2
    assert moved <= natural


def test_renaming_and_order_do_not_move_an_image() -> None:
    rows = many(50)
    renamed = [
        ImageRow(f"z{r.path}", r.key, r.label, r.group, r.split, r.note, r.readable, r.stats)
        for r in reversed(rows)
    ]
    before, after = splits(assign_splits(rows, 0)), splits(assign_splits(renamed, 0))
    assert {f"z{path}": split for path, split in before.items()} == after


def test_about_a_fifth_is_set_aside_and_the_seed_moves_it() -> None:
    first = [r.path for r in assign_splits(many(4000), 0) if r.split == "test"]
    other = [r.path for r in assign_splits(many(4000), 1) if r.split == "test"]
    assert 0.18 < len(first) / 4000 < 0.22
    assert 0.14 < len(set(first) & set(other)) / len(first) < 0.26


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 12), min_size=20, max_size=80), st.integers(0, 9))
def test_members_of_a_group_stay_on_one_side(groups: list[int], seed: int) -> None:
    rows = [row(f"{n:03d}", str(n), "ab"[n % 2], group=str(g)) for n, g in enumerate(groups)]
    sides: dict[str, set[str | None]] = {}
    for r in assign_splits(rows, seed):
        sides.setdefault(str(r.group), set()).add(r.split)
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize(
    ("units", "least"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 3), (30, 3)]
)
@pytest.mark.parametrize("size", [1, 2])
def test_a_class_keeps_enough_to_train_on_and_one_to_measure(
    units: int, least: int, size: int
) -> None:
    for seed in range(60):
        few = [
            row(f"{n}-{i}", f"{n}-{i}", "c", group=str(n) if size > 1 else None)
            for n in range(units)
            for i in range(size)
        ]
        result = [one for one in assign_splits([*many(40), *few], seed) if one.label == "c"]
        assert {one.split for one in result} == {"train"} | ({"test"} if units > 2 else set())
        training = sum(one.split == "train" for one in result) / size
        assert training >= least
        # those of the highest hashes train
        places = {one.split: position(seed, unit_of(one)) for one in result}
        assert units > 4 or len(places) < 2 or places["test"] < places["train"]


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 60), st.integers(0, 99))
def test_groups_of_several_classes_leave_all_of_them_trainable(groups: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    rows = [
        row(f"{n}", f"{n}", "abcdef"[drawn.integers(6)], group=str(drawn.integers(groups)))
        for n in range(100)
    ]
    before, after = (
        units_of_classes(rows),
        units_of_classes(one for one in assign_splits(rows, seed) if one.split == "train"),
    )
    assert all(after[label] >= min(2, before[label]) for label in before)


def test_a_path_that_a_table_lists_twice_counts_once() -> None:
    twice = [row("x", "x", split="train"), row("x", "x", split="test")]
    others = [row(f"{n}", f"{n}", split="train") for n in range(5)]
    result = assign_splits([*others, *twice], 0)
    assert sorted(str(r.split) for r in result if r.path == "x") == ["None", "test"]
    assert leaked_copies([*others, *twice]) == [
        Leak(path="x", split="train", copy="x", other="test")
    ]


def test_copies_count_once_and_conflicting_labels_not_at_all() -> None:
    rows = [
        *many(20),
        row("one", "same"),
        row("two", "same"),
        row("p", "q", "a"),
        row("r", "q", "b"),
    ]
    result = {r.path: r for r in assign_splits(rows, 0)}
    assert result["one"].split is not None
    assert (result["two"].split, result["two"].note) == (None, "copy of one")
    assert [result[p].split for p in "pr"] == [None, None]
    assert result["p"].note == result["r"].note == "conflicting labels"


def test_a_copy_in_a_given_test_split_counts_there_and_is_a_leak() -> None:
    rows = [
        *(row(f"{n}", f"{n}", split="train") for n in range(9)),
        row("a-train", "same", split="train"),
        row("z-test", "same", split="test"),
    ]
    result = assign_splits(rows, 0)
    assert splits(result)["z-test"] == "test"
    assert splits(result)["a-train"] is None
    assert leaked_copies(rows) == [Leak(path="a-train", split="train", copy="z-test", other="test")]


def test_groups_that_given_splits_tear_are_leaks_and_those_of_hashes_never_are() -> None:
    sides = {"1": "train", "2": "test", "3": "val", "4": "test", "5": "test", "6": "train"}
    groups = {"1": "x", "2": "x", "3": "x", "4": "y", "5": None, "6": None}
    rows = assign_splits([row(n, n, split=sides[n], group=groups[n]) for n in sides], 0)
    assert leaked_groups(rows) == [
        Leak(path="2", split="test", group="x", other="train"),
        Leak(path="3", split="val", group="x", other="train"),
    ]
    assert not leaked_groups(assign_splits([row(n, n, group=groups[n]) for n in sides], 0))


def test_given_splits_are_kept_and_val_is_never_set_aside() -> None:
    rows = [
        row(f"{n:03d}", str(n), "ab"[n % 2], split=["train", "val"][n % 4 == 3]) for n in range(200)
    ]
    result = assign_splits(rows, 0)
    assert all(r.split == "val" for r, g in zip(result, rows, strict=True) if g.split == "val")
    assert 20 <= sum(r.split == "test" for r in result) <= 40


def test_a_folder_of_a_long_name_has_a_snapshot_of_one_that_files_can_have() -> None:
    name = Snapshot("/" + "f" * 255, (), 0, 1).name
    assert name.startswith("ffff")
    assert len(name) < 200


def test_a_snapshot_survives_parquet_with_odd_names() -> None:
    rows = (
        row("a\udcff.png", "1"),
        row("naïve 🐈\n.png", "2", None, note="truncated", readable=False),
        row("z.png", "3", "caf\udce9", group="g\udce9", note="copy of a\udcff.png"),
    )
    snapshot = Snapshot("/root", rows, 3, 17)
    assert Snapshot.from_parquet(snapshot.name, snapshot.to_parquet()) == snapshot


def test_the_fingerprint_ignores_times_and_sees_labels() -> None:
    one = Snapshot("/r", (row("p", "1"),), 0, 1)
    later = Snapshot("/r", (row("p", "1"),), 0, 2)
    relabelled = Snapshot("/r", (row("p", "1", "b"),), 0, 1)
    assert one.fingerprint == later.fingerprint != relabelled.fingerprint


@given(seed=st.integers(0, 99), least=st.integers(0, 9))
def test_classes_of_fewer_images_or_groups_are_in_no_split(seed: int, least: int) -> None:
    sizes = {"c": 1, "d": 3, "e": 8}
    rows = many(40) + [
        row(f"{c}{n}", f"{c}{n}", c) for c, size in sizes.items() for n in range(size)
    ]
    rows += [row(f"g{n}", f"g{n}", "g", group="one") for n in range(8)]
    rows += [row(f"copy {n}", "c0", "c") for n in range(9)]
    result = assign_splits(rows, seed, least)
    kept = {"a", "b"} | {c for c, size in (sizes | {"g": 1}).items() if size >= least}
    assert {one.label for one in result if one.split} == kept
    without = assign_splits([one for one in rows if one.label in kept], seed)
    assert tuple(one for one in result if one.label in kept) == without
    assert not has_given_test(result, seed)
