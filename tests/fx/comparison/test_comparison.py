"""The comparison: nested subsets, one test set, finished cells kept, an honest verdict."""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, make_image, write_classes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from extract.images import ImageRow
from fx.comparison.context import nested_subset
from fx.comparison.learning_curve import crossover
from fx.comparison.plan import Plan
from fx.comparison.recommend import (
    describe_quadrant,
    differences,
    estimates,
    paired_tests,
    recommend,
)
from fx.comparison.statistics import tables_of
from fx.records import Crossover, Measurement

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


Right = dict[str, dict[int, list[list[int]]]]


def tables(right: Right) -> dict[str, dict[int, np.ndarray]]:
    return {
        s: {n: np.array(rows, np.int8) for n, rows in sizes.items()} for s, sizes in right.items()
    }


def test_tables_say_what_each_seed_got_right() -> None:
    cells = [
        Measurement("svm", 8, 1, predicted=[0, 1], truth=[0, 0]),
        Measurement("svm", 8, 0, predicted=[1, 0], truth=[0, 0]),
    ]
    assert tables_of(cells)["svm"][8].tolist() == [[0, 1], [1, 0]]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=5, max_size=80))
def test_paired_tests_are_exact_binomial_and_corrected_by_holm(outcomes) -> None:
    names = ("logreg", "svm", "finetune:1")
    pairs = paired_tests(
        tables({n: {100: [[int(row[i]) for row in outcomes]]} for i, n in enumerate(names)})
    )
    assert len(pairs) == 3
    for pair in pairs:
        i, j = names.index(pair.a), names.index(pair.b)
        only_a = sum(row[i] and not row[j] for row in outcomes)
        only_b = sum(row[j] and not row[i] for row in outcomes)
        expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert pair.p_value == pytest.approx(min(expected, 1.0))
        assert pair.difference == pytest.approx((only_a - only_b) / len(outcomes))
    running = 0.0
    for place, pair in enumerate(sorted(pairs, key=lambda p: p.p_value)):
        running = max(running, min(1.0, pair.p_value * (3 - place)))
        assert pair.p_holm == pytest.approx(running)


def curve(accuracies: dict[int, float], seeds: int = 3, images: int = 1000) -> dict:
    """Make tables of an accuracy, each seed's mistakes on other images."""
    return {
        n: [
            np.roll(np.arange(images) < round(a * images), 7 * seed).astype(int).tolist()
            for seed in range(seeds)
        ]
        for n, a in accuracies.items()
    }


def test_estimates_say_what_their_interval_covers() -> None:
    found = tables({"svm": curve({10: 0.8}) | curve({100: 0.9}, seeds=1)})
    small, large = estimates(found)
    assert small.seeds == 3
    assert "training images" in small.covers
    assert "not other training images" in large.covers
    for one in (small, large):
        assert one.interval[0] < one.accuracy < one.interval[1]


def test_differences_hold_at_once_and_only_where_both_were_measured() -> None:
    found = tables(
        {
            "logreg": curve({10: 0.8, 100: 0.9}),
            "svm": curve({10: 0.8}),
            "knn": curve({10: 0.6, 100: 0.7}),
        }
    )
    compared = differences(found)
    assert [(one.a, one.b, one.n_train) for one in compared] == [
        ("logreg", "svm", 10),
        ("logreg", "knn", 10),
        ("logreg", "knn", 100),
        ("svm", "knn", 10),
    ]
    same = compared[0]
    assert (same.difference, same.p_holm, same.interval) == (0, 1, (0, 0))
    assert compared[1].difference == pytest.approx(0.2)
    assert compared[1].p_holm < 0.01


def test_the_crossing_is_where_fine_tuning_begins_to_win_for_good() -> None:
    heads = {"logreg": curve({10: 0.6, 100: 0.7, 1000: 0.8})}
    wins_late = {"finetune:1": curve({10: 0.65, 100: 0.65, 1000: 0.9})}
    found = crossover(tables(heads | wins_late))
    assert found is not None
    # half a point behind and twice that ahead: a third of the way in the logarithm
    assert found.n_train == round(100 * 10 ** (1 / 3))
    assert 100 < found.low < found.n_train < found.high < 1000
    assert found.share == 1
    wins_always = {"finetune:all": curve({10: 0.9, 100: 0.95, 1000: 0.99})}
    assert crossover(tables(heads | wins_always)) == Crossover(10, low=10, high=10, share=1)
    never = {"finetune:1": curve({10: 0.5, 100: 0.5, 1000: 0.8})}
    assert crossover(tables(heads | never)) is None
    assert crossover(tables(heads)) is None


def said_of(right: Right, seconds: dict[str, float], **choices: str) -> str:
    found = tables(right)
    results = [Measurement(s, n, 0, seconds=seconds[s]) for s in right for n in right[s]]
    return recommend(results, found, differences(found), **choices).said


def test_the_cheapest_within_a_standard_error_is_recommended() -> None:
    near = {"logreg": curve({100: 0.90}, 1), "finetune:1": curve({100: 0.905}, 1)}
    seconds = {"logreg": 1.0, "finetune:1": 60.0}
    said = said_of(near, seconds)
    assert said.startswith("Fit a head on frozen features: logistic regression. ")
    assert "logreg: accuracy 0.900 (0.8" in said
    assert "test images alone" in said
    assert "within a standard error of the best, finetune:1." in said
    assert "Over finetune:1, which takes longer, it gains -0.5 points" in said
    assert "59.0 s less" in said
    best = said_of(near, seconds, prefer="accuracy")
    assert best.startswith("Fine-tune the last block. finetune:1: accuracy 0.905")
    far = {"logreg": curve({100: 0.80}), "finetune:1": curve({100: 0.905})}
    said = said_of(far, seconds)
    assert said.startswith("Fine-tune the last block. finetune:1")
    assert "Over logreg, the next cheaper, it gains +10.5 points" in said
    assert "beyond chance" in said
    alone = said_of({"svm": curve({100: 0.8})}, {"svm": 2.0})
    assert alone.endswith("after 100 training images, in 2.0 s.")


def test_fewer_subsets_are_drawn_of_larger_sizes() -> None:
    plan = Plan(strategies=("logreg",), seeds=3)
    cells = list(plan.cells([10, 400, 600, 1000], 1000, 5))
    assert [seed for _, size, seed in cells if size == 10] == [5, 6, 7]
    assert [seed for _, size, seed in cells if size == 400] == [5, 6]
    assert [seed for _, size, seed in cells if size > 400] == [5, 5]


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

    first = compared("--strategies", "logreg", "--sizes", "8,20", "--seeds", 1)
    more = compared("--strategies", "logreg,finetune:1", "--sizes", "8,20", "--seeds", 2)
    assert len(first["results"]) == 2
    # 21 images: two subsets of 8, one of 20
    assert len(more["results"]) == 6
    kept = {(r["strategy"], r["n_train"], r["seed"]): r for r in more["results"]}
    for record in first["results"]:
        # the very seconds: it was not run again
        assert kept[record["strategy"], record["n_train"], record["seed"]] == record
    assert Path(more["report"]).stat().st_size > 10_000
    assert not (Path(more["report"]).parent / "cache").exists()
    tested = {record["n_test"] for record in more["results"]}
    assert len(tested) == 1


def test_cells_keep_all_probabilities_and_what_an_older_recipe_measured_is_not_taken(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=24, classes=("a", "b", "c"))
    words = ["--size", 32, "--sizes", "24,50", "--strategies", "logreg,finetune:1", "--seeds", 1]
    words += ["--epochs", 2, "--class-weight", "balanced"]
    said = fx("compare", *words, "--json")
    assert said.status == 0, said.err
    first = json.loads(said.out)
    folder = Path(first["report"]).parent
    cells = sorted((folder / "cells").iterdir())
    assert len(cells) == len(first["results"]) == 4
    for cell in cells:
        record = json.loads((cell / "result.json").read_text())
        kept = np.load(cell / "probabilities.npy", allow_pickle=False)
        assert kept.shape == (record["n_test"], 3)
        assert kept.argmax(axis=1).tolist() == record["predicted"]
        truth = np.array(record["truth"])
        losses = -np.log(kept[np.arange(len(truth)), truth])
        assert losses.mean() == pytest.approx(record["log_loss"], rel=1e-4)
        assert record["classes"] == ["a", "b", "c"]
        assert set(record["calibration"]) >= {"temperature", "log_loss_after", "ece_before"}
        assert record["n_fitted"] == record["n_train"]
        assert not (cell / "limits.npz").exists()
    # one decision for all cells, kept and told
    (flips,) = first["flips"]
    assert json.loads((folder / "flips" / "result.json").read_text())["said"] == flips["said"]
    again = fx("compare", *words)
    told = " ".join(again.out.split())
    assert f"efficientnet_lite0: {flips['said']}." in told
    for title in ("accuracy on the test images", "log loss", "calibration error"):
        assert f"{title}, by training images" in again.out
    assert max(map(len, again.out.splitlines())) <= 80
    page = Path(first["report"]).read_text()
    assert flips["said"].split("(")[0] in page
    # another way of training is another comparison
    monkeypatch.setattr("finetune.settings.RECIPE_VERSION", 10**6)
    other = json.loads(fx("compare", *words, "--json").out)
    assert Path(other["report"]).parent != folder


def test_given_validation_rows_choose_and_are_not_trained_on(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        for label, colour in (("a", 0), ("b", 1)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for n in range(8):
                make_image(colour, 100 * number + 10 * colour + n).save(folder / f"{n}.png")
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


def test_a_dry_run_says_what_would_be_measured_and_measures_nothing(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=20)
    words = ["--size", 32, "--sizes", "8,24", "--strategies", "logreg,finetune:1", "--epochs", 2]
    said = fx("compare", *words, "--dry-run", "--json")
    assert said.status == 0, said.err
    planned = json.loads(said.out)
    cells = [(c["strategy"], c["n_train"], c["seed"]) for c in planned["cells"]]
    assert cells == [
        (strategy, size, seed)
        for size, seed in ((8, 0), (24, 0), (8, 1), (8, 2))
        for strategy in ("logreg", "finetune:1")
    ]
    assert all(cell["seconds"] > 0 for cell in planned["cells"])
    assert planned["seconds"] > sum(cell["seconds"] for cell in planned["cells"])
    assert planned["disk_mb"] > 0
    assert not (tmp_path / "features.zarr").exists()
    assert not (tmp_path / "runs").exists()
    told = fx("compare", *words, "--dry-run").out
    assert "in all about" in told
    assert max(map(len, told.splitlines())) <= 80


def test_a_budget_leaves_out_what_would_not_fit(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=20)
    words = ["compare", "--size", 32, "--sizes", "8,24", "--strategies", "knn,finetune:1"]
    assert fx("extract", "--size", 32).status == 0
    monkeypatch.setattr(
        "fx.comparison.cost.CostModel.cell", lambda _, cell: 500.0 if ":" in cell.strategy else 1.0
    )
    record = json.loads(fx(*words, "--budget", "5m", "--json").out)
    assert {cell["strategy"] for cell in record["results"]} == {"knn"}
    left_out = {(c["strategy"], c["reason"]) for c in record["skipped"]}
    assert left_out == {("finetune:1", "would not fit the budget of 300 s")}
    nothing = fx(*words, "--budget", "0.1s", "--fresh")
    assert nothing.status == 1
    assert "nothing was measured: knn: would not fit the budget" in nothing.err
    assert fx(*words, "--budget", "soon").status == 2


def test_several_backbones_are_compared_on_the_same_rows(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=12)
    words = ["--size", 32, "--sizes", "8", "--seeds", 1, "--strategies", "knn,logreg"]
    one = json.loads(
        fx("compare", *words, "--backbone", "resnet18", "--weights", "random", "--json").out
    )
    several = ["--backbone", "resnet18,efficientnet_lite0", "--weights", "random,default"]
    both = json.loads(fx("compare", *words, *several, "--json").out)
    assert [cell["strategy"] for cell in both["results"]] == [
        "knn on resnet18",
        "logreg on resnet18",
        "knn on efficientnet_lite0",
        "logreg on efficientnet_lite0",
    ]
    # what was measured of one network before is not measured again
    assert [c["seconds"] for c in both["results"][:2]] == [c["seconds"] for c in one["results"]]
    assert len(both["differences"]) == 6
    assert both["report"] != one["report"]
    refused = fx("compare", "--backbone", "a,b,c", "--weights", "random,default")
    assert refused.status == 1
    assert "one each" in refused.err


@pytest.mark.parametrize(
    ("n_train", "distance", "chosen", "agrees", "said"),
    [
        (100, 0.2, "logreg", True, "few images (100; many from 2,000), like"),
        (100, 0.8, "svm on resnet18", True, "unlike those"),
        (5000, 0.2, "finetune:all", True, "many images"),
        (5000, 0.2, "svm", False, "contradicts it: svm."),
        (100, None, "finetune:1", False, "no batch norm"),
    ],
)
def test_the_quadrant_is_named_and_whether_the_measurement_agrees(
    n_train: int, distance: float | None, chosen: str, agrees: bool, said: str
) -> None:
    found = describe_quadrant(n_train, distance, chosen)
    assert found.agrees == agrees
    assert said in found.said
