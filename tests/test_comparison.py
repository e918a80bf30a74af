"""The comparison: nested subsets, one test set, finished cells kept, an honest verdict."""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Said, picture, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from extract import ImageRow
from fx.comparison import Plan
from fx.subsets import nested_subset
from fx.verdict import crossover, paired_tests, recommend

Fx = Callable[..., Said]


def rows_of(counts: dict[str, int]) -> list[ImageRow]:
    return [
        ImageRow(
            f"{label}/{n}",
            hashlib.sha256(f"{label}{n}".encode()).digest(),
            label,
            None,
            "train",
            "",
            True,
            None,
        )
        for label, count in counts.items()
        for n in range(count)
    ]


COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(2, 60), min_size=2)


@settings(deadline=None, max_examples=60)
@given(COUNTS, st.integers(2, 200), st.integers(2, 200), st.integers(0, 5), st.randoms())
def test_a_smaller_subset_lies_within_a_larger_one(counts, small, large, seed, random) -> None:
    rows = rows_of(counts)
    small, large = sorted((small, large))
    inner = {row.path for row in nested_subset(rows, small, seed)}
    random.shuffle(rows)
    outer = {row.path for row in nested_subset(rows, large, seed)}
    assert inner <= outer
    assert len(outer) == min(len(rows), max(large, 2 * len(counts)))


@settings(deadline=None, max_examples=60)
@given(COUNTS, st.integers(2, 200), st.integers(0, 5))
def test_a_subset_has_every_class_and_about_its_share(counts, size, seed) -> None:
    chosen = nested_subset(rows_of(counts), size, seed)
    found = Counter(row.label for row in chosen)
    assert set(found) == set(counts)
    for label, count in counts.items():
        assert found[label] >= 2
        share = len(chosen) * count / sum(counts.values())
        # two of each come first, whatever their share
        assert abs(found[label] - share) <= 2 * len(counts) + 1


def test_a_subset_has_as_many_groups_as_it_can() -> None:
    rows = [
        replace(row, group=f"{row.label}{n % 10}")
        for n, row in enumerate(rows_of({"a": 100, "b": 100}))
    ]
    for seed in range(5):
        groups = Counter(row.group for row in nested_subset(rows, 20, seed))
        assert len(groups) == 20


def test_another_seed_draws_another_subset() -> None:
    rows = rows_of({"a": 100, "b": 100})
    draws = [frozenset(r.path for r in nested_subset(rows, 40, seed)) for seed in range(4)]
    assert len(set(draws)) == 4


def cell(strategy: str, right: list[int], **given_: object) -> dict[str, object]:
    base = {"strategy": strategy, "n_train": 100, "seed": 0, "seconds": 1.0, "n_test": len(right)}
    accuracy = sum(right) / len(right)
    predicted = [0 if one else 1 for one in right]
    truth = [0] * len(right)
    return {**base, "accuracy": accuracy, "predicted": predicted, "truth": truth, **given_}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=5, max_size=80))
def test_paired_tests_are_exact_binomial_and_corrected_by_holm(outcomes) -> None:
    names = ("logreg", "svm", "finetune:1")
    cells = [cell(n, [int(row[i]) for row in outcomes]) for i, n in enumerate(names)]
    pairs = paired_tests(cells)
    assert len(pairs) == 3
    for pair in pairs:
        i, j = names.index(pair["a"]), names.index(pair["b"])
        only_a = sum(row[i] and not row[j] for row in outcomes)
        only_b = sum(row[j] and not row[i] for row in outcomes)
        expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert pair["p_value"] == pytest.approx(min(expected, 1.0))
        assert pair["difference"] == pytest.approx((only_a - only_b) / len(outcomes))
    running = 0.0
    for place, pair in enumerate(sorted(pairs, key=lambda p: p["p_value"])):
        running = max(running, min(1.0, pair["p_value"] * (3 - place)))
        assert pair["p_holm"] == pytest.approx(running)


def curve(strategy: str, accuracies: dict[int, float], seconds: float = 1.0) -> list[dict]:
    return [
        {
            "strategy": strategy,
            "n_train": n,
            "seed": 0,
            "accuracy": a,
            "seconds": seconds,
            "n_test": 1000,
        }
        for n, a in accuracies.items()
    ]


def test_the_crossing_is_where_fine_tuning_begins_to_win_for_good() -> None:
    heads = curve("logreg", {10: 0.6, 100: 0.7, 1000: 0.8})
    wins_late = curve("finetune:1", {10: 0.65, 100: 0.65, 1000: 0.9})
    assert crossover(heads + wins_late) == {"n_train": 1000}
    wins_always = curve("finetune:all", {10: 0.61, 100: 0.71, 1000: 0.81})
    assert crossover(heads + wins_always) == {"n_train": 10}
    never = curve("finetune:1", {10: 0.5, 100: 0.5, 1000: 0.8})
    assert crossover(heads + never) is None
    assert crossover(heads) is None


def test_the_cheapest_within_a_standard_error_is_recommended() -> None:
    results = curve("logreg", {100: 0.90}, 1) + curve("finetune:1", {100: 0.905}, 60)
    assert recommend(results, []).startswith("Use logreg: accuracy 0.900")
    results = curve("logreg", {100: 0.80}, 1) + curve("finetune:1", {100: 0.905}, 60)
    pairs = [{"a": "finetune:1", "b": "logreg", "p_holm": 1e-9}]
    said = recommend(results, pairs)
    assert said.startswith("Use finetune:1")
    assert "10.5 points less: a difference beyond chance" in said


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategies": ("forest",)},
        {"strategies": ()},
        {"strategies": ("finetune:-1",)},
        {"sizes": (1,)},
        {"seeds": 0},
    ],
)
def test_a_plan_is_checked_where_it_is_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"got|choose|at least"):
        Plan(**wrong)


def test_only_new_cells_are_computed(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=16)
    assert fx("extract", "--size", 32).status == 0

    def compared(*words: object) -> dict:
        said = fx("compare", "--epochs", 1, *words, "--json")
        assert said.status == 0, said.err
        return json.loads(said.out)

    first = compared("--strategies", "logreg", "--sizes", "8,20")
    more = compared("--strategies", "logreg,finetune:1", "--sizes", "8,20", "--seeds", 2)
    assert len(first["results"]) == 2
    assert len(more["results"]) == 8
    kept = {(r["strategy"], r["n_train"], r["seed"]): r for r in more["results"]}
    for record in first["results"]:
        # the very seconds: it was not run again
        assert kept[record["strategy"], record["n_train"], record["seed"]] == record
    assert Path(more["report"]).stat().st_size > 10_000
    assert not (Path(more["report"]).parent / "cache").exists()
    tested = {record["n_test"] for record in more["results"]}
    assert len(tested) == 1


def test_given_validation_rows_choose_and_are_not_trained_on(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        for label, colour in (("a", 0), ("b", 1)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for n in range(8):
                picture(colour, 100 * number + 10 * colour + n).save(folder / f"{n}.png")
    assert fx("extract", "--size", 32).status == 0
    head = json.loads(fx("fit-head", "logreg", "--json").out)
    assert (head["n_train"], head["n_validation"], head["n_test"]) == (16, 16, 16)
    tuned = json.loads(fx("finetune", "--epochs", 1, "--json").out)
    assert (tuned["n_train"], tuned["n_validation"], tuned["n_test"]) == (16, 16, 16)


def test_what_one_strategy_cannot_do_does_not_cost_the_others(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=12)
    assert fx("extract", "--size", 32).status == 0
    said = fx("compare", "--sizes", "4,16", "--strategies", "logreg,finetune:0", "--epochs", 1)
    assert said.status == 0, said.err
    assert "left out: finetune:0 at 4: too few images to fine-tune" in said.out
    refused = fx("compare", "--strategies", "logreg,finetune:9")
    assert refused.status == 1
    assert "has 5 blocks; got finetune:9" in refused.err


def test_the_reports_command_repeats_the_comparison(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "my data", per_class=10)
    words = ["--size", 32, "--sizes", "8", "--strategies", "logreg", "--seed", 3, "--seeds", 2]
    first = json.loads(fx("compare", "my data", *words, "--json").out)
    (command,) = first["commands"]
    again = json.loads(fx(*shlex.split(command)[1:], "--json").out)
    assert again["results"] == first["results"]
    assert again["extraction_seconds"] == first["extraction_seconds"]
