"""The comparison: nested subsets, one test set, finished cells kept, an honest verdict."""

import dataclasses
import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Said, make_image, write_classes, write_splits
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.backbones import load_backbone
from extract.errors import FxError
from extract.images import ImageRow, find_images
from fx.comparison import compare
from fx.comparison.context import nested_subset
from fx.comparison.learning_curve import crossover
from fx.comparison.networks import prepare
from fx.comparison.plan import Plan
from fx.comparison.recommend import describe_quadrant, differences, estimates, recommend
from fx.comparison.statistics import Scores
from fx.options import Options, open_backbone
from fx.records import Crossover, Measurement
from heads.metrics import METRICS

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


def scores_of(right: Right, groups: np.ndarray | None = None) -> Scores:
    tables = {
        s: {n: np.array(rows, float) for n, rows in sizes.items()} for s, sizes in right.items()
    }
    return Scores(METRICS["accuracy"], tables, groups)


def curve(accuracies: dict[int, float], seeds: int = 3, images: int = 1000, first: int = 0) -> dict:
    """Make tables of an accuracy, each seed's mistakes on other images, from the `first` on."""
    return {
        n: [
            np.roll(np.arange(images) < round(a * images), first + 7 * seed).astype(int).tolist()
            for seed in range(seeds)
        ]
        for n, a in accuracies.items()
    }


def test_estimates_say_what_their_interval_covers() -> None:
    found = scores_of({"svm": curve({10: 0.8}) | curve({100: 0.9}, seeds=1)})
    small, large = estimates(found)
    assert (small.seeds, large.seeds) == (3, 1)
    # of one draw, how much draws differ is that of the smaller size
    assert small.covers == large.covers == "other training images, seeds and test images"
    # of all training images, draws have other seeds alone
    whole = dataclasses.replace(scores_of({"svm": curve({100: 0.9})}), whole=100)
    assert estimates(whole)[0].covers == "other seeds and test images; not other training images"
    (alone,) = estimates(scores_of({"svm": curve({100: 0.9}, seeds=1)}))
    assert alone.covers == "other test images; not other training images or seeds"
    for one in (small, large, alone):
        assert one.interval[0] < one.value < one.interval[1]


def test_differences_are_of_pairs_that_both_were_measured() -> None:
    found = scores_of(
        {
            "logreg": curve({10: 0.8, 100: 0.9}),
            "svm": curve({10: 0.8}),
            "knn": curve({10: 0.6, 100: 0.7}, seeds=2),
        }
    )
    compared = differences(found)
    assert [(one.a, one.b, one.n_train, one.seeds) for one in compared] == [
        ("logreg", "svm", 10, 3),
        ("logreg", "knn", 10, 2),
        ("logreg", "knn", 100, 2),
        ("svm", "knn", 10, 2),
    ]
    assert compared[0].difference == 0
    assert compared[0].interval[0] < 0 < compared[0].interval[1]
    assert compared[1].difference == pytest.approx(0.2)
    assert compared[1].interval[0] > 0


def test_the_crossing_is_where_fine_tuning_begins_to_win_for_good() -> None:
    heads = {"logreg": curve({10: 0.6, 100: 0.7, 1000: 0.8})}
    wins_late = {"finetune:1": curve({10: 0.65, 100: 0.65, 1000: 0.9})}
    found = crossover(scores_of(heads | wins_late))
    # half a point behind and twice that ahead: a third of the way in the logarithm
    assert found == Crossover(round(100 * 10 ** (1 / 3)), low=100, high=1000)
    wins_always = {"finetune:all": curve({10: 0.9, 100: 0.95, 1000: 0.99})}
    assert crossover(scores_of(heads | wins_always)) == Crossover(10, low=None, high=10)
    never = {"finetune:1": curve({10: 0.5, 100: 0.5, 1000: 0.8})}
    assert crossover(scores_of(heads | never)) is None
    by_one_image = {"finetune:1": curve({10: 0.5, 100: 0.5}) | curve({1000: 0.801}, seeds=1)}
    assert crossover(scores_of(heads | by_one_image)) is None
    assert crossover(scores_of(heads)) is None
    of_one_size = {s: {1000: sizes[1000]} for s, sizes in (heads | wins_late).items()}
    assert crossover(scores_of(of_one_size)) is None


def said_of(right: Right, seconds: dict[str, float], prefer: str = "cheap", **more) -> str:
    found = scores_of(right, more.pop("groups", None))
    results = [Measurement(s, n, 0, seconds=seconds[s], **more) for s in right for n in right[s]]
    return recommend(results, found, prefer=prefer).said


SECONDS = {"logreg": 1.0, "finetune:1": 60.0}


def test_the_cheapest_is_recommended_that_none_is_shown_to_beat() -> None:
    near = {"logreg": curve({100: 0.90}), "finetune:1": curve({100: 0.905}, first=50)}
    said = said_of(near, SECONDS)
    assert said.startswith(
        "Use logreg: nothing is shown to be better. logreg: accuracy 0.900 after"
    )
    assert "with other training images, seeds and test images)." in said
    assert "finetune:1 gains +0.5 points (at most +" in said
    assert "for 59.0 s more, which is not shown: a gain of +" in said
    assert "or this one with about " in said
    best = said_of(near, SECONDS, prefer="best")
    assert best.startswith(
        "Use finetune:1: nothing is shown to be better. finetune:1: accuracy 0.9"
    )
    far = {"logreg": curve({100: 0.80}), "finetune:1": curve({100: 0.905})}
    said = said_of(far, SECONDS)
    assert said.startswith("Fine-tune the last block. finetune:1")
    assert "Over logreg it gains +10.5 points (at least +" in said
    alone = said_of({"svm": curve({100: 0.8})}, {"svm": 2.0})
    assert "after 100 training images, in 2.0 s (0.7" in alone


def test_of_one_draw_only_a_large_gain_is_said_to_be_one() -> None:
    near = {"logreg": curve({500: 0.90}, 1), "finetune:1": curve({500: 0.93}, 1)}
    said = said_of(near, SECONDS)
    assert said.startswith("Use logreg: nothing is shown to be better.")
    assert "with draws taken to differ by 2.5 points; `--seeds 3` measures by how much" in said
    assert "with other test images; not other training images or seeds)" in said
    far = {"logreg": curve({500: 0.80}, 1), "finetune:1": curve({500: 0.93}, 1)}
    said = said_of(far, SECONDS)
    assert said.startswith("Fine-tune the last block.")
    assert "points, if draws differ by no more than 2.5 points) for 59.0 s more." in said


def test_an_interval_of_an_accuracy_stays_between_0_and_1() -> None:
    varying = {"svm": {8: [*curve({8: 0.99}, 1)[8], *curve({8: 0.7}, 1)[8]]}}
    (one,) = estimates(scores_of(varying))
    assert one.interval == (0, 1)
    (gain,) = differences(scores_of(varying | {"knn": curve({8: 0.9}, 2)}))
    assert gain.interval == (-1, 1)


def test_two_draws_have_one_mean_and_its_interval() -> None:
    first, second = curve({100: 0.9}, 1)[100] + curve({100: 0.8}, 1)[100]
    swapped = scores_of({"logreg": {100: [first, second]}, "finetune:1": {100: [second, first]}})
    for one in estimates(swapped):
        assert one.value == pytest.approx(0.85)
        assert one.interval[0] < 0.85 < one.interval[1]
    (difference,) = differences(swapped)
    assert difference.difference == pytest.approx(0)
    assert difference.interval[0] < 0 < difference.interval[1]


def test_of_few_groups_nothing_is_said_of_other_images() -> None:
    right = {"logreg": curve({100: 0.80}), "finetune:1": curve({100: 0.905})}
    few = said_of(right, SECONDS, groups=np.arange(1000) // 100)
    assert few.startswith("Use logreg: nothing is shown to be better. logreg: accuracy 0.800 after")
    assert "(no interval: 10 groups of test images, and 20 are needed)" in few
    assert "what holds for other test images cannot be said of 10 groups of test images." in few
    many = said_of(right, SECONDS, groups=np.arange(1000) // 10)
    assert many.startswith("Fine-tune the last block.")


def test_what_is_no_better_than_the_commonest_class_is_said_first() -> None:
    said = said_of({"logreg": curve({100: 0.62})}, SECONDS, majority=0.61)
    assert said.startswith(
        "Nothing is learned: logreg is not shown to be better than always naming"
    )
    assert "(0.610)" in said
    assert said_of({"logreg": curve({100: 0.7})}, SECONDS, majority=0.61).startswith("Fit a head")


def test_another_metric_that_would_choose_otherwise_is_told() -> None:
    right = {"logreg": curve({100: 0.8}), "finetune:1": curve({100: 0.9})}
    wrong = {"logreg": curve({100: 0.9}), "finetune:1": curve({100: 0.8})}
    results = [Measurement(s, 100, 0, seconds=SECONDS[s]) for s in right]
    by_loss = dataclasses.replace(scores_of(right), metric=METRICS["log_loss"])
    found = recommend(results, scores_of(right), [by_loss])
    assert found.strategy == "finetune:1"
    assert found.figures.endswith("By log loss it would be logreg.")
    # of a loss, less is better
    same = dataclasses.replace(scores_of(wrong), metric=METRICS["log_loss"])
    assert "By log loss" not in recommend(results, scores_of(right), [same]).figures


def test_a_strategy_is_measured_once_however_it_is_spelled() -> None:
    plan = Plan(strategies=("logreg", "finetune:01", "logreg", "finetune:1"))
    assert plan.strategies == ("logreg", "finetune:1")


def test_options_take_paths_as_strings() -> None:
    options = Options(store="a.zarr", out="b", root="c")
    assert [options.store, options.out, options.root] == [Path("a.zarr"), Path("b"), Path("c")]


def test_fewer_subsets_are_drawn_of_larger_sizes() -> None:
    plan = Plan(strategies=("logreg",), seeds=3)
    cells = list(plan.cells([10, 400, 600, 1000], 1000, 5))
    assert [seed for _, size, seed in cells if size == 10] == [5, 6, 7]
    assert [seed for _, size, seed in cells if size == 1000] == [5, 6, 7]
    cells = list(plan.cells([10, 8_000, 12_000, 20_000], 20_000, 5))
    assert [seed for _, size, seed in cells if size == 10] == [5, 6, 7]
    assert [seed for _, size, seed in cells if size == 8_000] == [5, 6]
    assert [seed for _, size, seed in cells if size > 8_000] == [5, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategies": ("forest",)},
        {"strategies": ()},
        {"strategies": ("finetune:-1",)},
        {"strategies": ("logreg on resnet18",)},
        {"sizes": (1,)},
        {"seeds": 0},
    ],
)
def test_a_plan_is_checked_where_it_is_made(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"got|choose|at least"):
        Plan(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"metric": "acc"}, "`metric` must be one of accuracy, log_loss, macro_f1; got 'acc'"),
        ({"prefer": "fast"}, "`prefer` must be one of cheap, best; got 'fast'"),
        ({"wanted": 95}, "`wanted` must be between 0 and 1, such as 0.95; got 95"),
    ],
)
def test_what_decides_is_checked_before_anything_is_measured(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(FxError, match=re.escape(said)):
        compare(Path("none"), Options(), Plan(), **wrong, begin=lambda _: lambda *_: None)


def test_only_new_cells_are_computed(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(tmp_path / "data", per_class=12)
    assert fx("extract", "--size", 32).status == 0

    def compared(*words: object) -> dict:
        said = fx("compare", "--epochs", 1, *words, "--json")
        assert said.status == 0, said.err
        return json.loads(said.out)

    first = compared("--strategies", "logreg", "--sizes", "8", "--seeds", 1)
    more = compared("--strategies", "logreg,finetune:1", "--sizes", "8,20", "--seeds", 1)
    assert len(first["results"]) == 1
    assert len(more["results"]) == 4
    kept = {(r["strategy"], r["n_train"], r["seed"]): r for r in more["results"]}
    for record in first["results"]:
        # the very seconds: it was not run again
        assert kept[record["strategy"], record["n_train"], record["seed"]] == record
    # what is deployed: a head with the network below it, or a network
    tensors = load_backbone("efficientnet_lite0", size=32).module.state_dict().values()
    network = sum(t.numel() * t.element_size() for t in tensors) / 1e6
    for record in more["results"]:
        assert network < record["deployed_mb"] < 1.05 * network
        assert 0.01 < record["predict_ms"] < 1_000
    timed = json.loads((Path(more["report"]).parent / "network" / "result.json").read_text())
    heads = [r["predict_ms"] for r in more["results"] if r["strategy"] == "logreg"]
    assert all(timed["milliseconds"] < one for one in heads)
    assert Path(more["report"]).stat().st_size > 10_000
    assert not (Path(more["report"]).parent / "cache").exists()
    tested = {record["n_test"] for record in more["results"]}
    assert len(tested) == 1


@pytest.mark.slow
def test_what_is_damaged_of_a_comparison_is_made_again(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(tmp_path / "data", per_class=8)
    words = ["--size", 32, "--strategies", "centroid,finetune:0", "--sizes", "8,16", "--seeds", 1]
    words += ["--epochs", 1, "--json"]
    first = json.loads(fx("compare", *words).out)
    folder = Path(first["report"]).parent
    cells = folder / "cells"
    for name, content in {
        "centroid-8-0/result.json": "{}",
        "centroid-16-0/probabilities.npy": "",
        "finetune-0-8-0/probabilities.npy": "no array",
        "../flips/result.json": "{",
        "../extraction/result.json": "[]",
    }.items():
        assert (cells / name).is_file()
        (cells / name).write_text(content)
    said = fx("compare", *words)
    assert said.status == 0, said.err
    again = json.loads(said.out)
    assert again["skipped"] == []
    for once, twice in zip(first["results"], again["results"], strict=True):
        assert once["log_loss"] == twice["log_loss"]
    assert [{**one, "seconds": 0} for one in first["flips"]] == [
        {**one, "seconds": 0} for one in again["flips"]
    ]


@pytest.mark.slow
def test_cells_keep_all_probabilities_and_what_an_older_recipe_measured_is_not_taken(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(tmp_path / "data", per_class=18, classes=("a", "b", "c"))
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
    options = Options(store=tmp_path / "features.zarr", size=32)
    plan = Plan(("logreg", "finetune:1"), (24, 50), 1, 2, "balanced")
    source = find_images(tmp_path / "data")
    other = prepare(source, options, plan, open_backbone(options), begin=lambda _: lambda *_: None)
    assert other.context.directory.parent == folder.parent
    assert other.context.directory != folder
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    same = prepare(source, options, plan, open_backbone(options), begin=lambda _: lambda *_: None)
    assert same.context.directory == folder


def test_few_images_are_all_tested_in_outer_folds_by_every_strategy(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=10)
    words = ["compare", "--size", 32, "--strategies", "logreg,finetune:0", "--epochs", 1]
    words += ["--sizes", "16"]
    planned = json.loads(fx(*words, "--dry-run", "--json").out)
    said = fx(*words, "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    # five draws: the folds of one repeat
    cells = [(one["strategy"], one["n_train"], one["seed"]) for one in record["results"]]
    assert cells == [("logreg", 16, 0), ("finetune:0", 16, 0)]
    assert cells == [(c["strategy"], c["n_train"], c["seed"]) for c in planned["cells"]]
    assert (planned["n_train"], planned["n_test"]) == (record["n_train"], record["n_test"])
    assert (record["n_train"], record["n_test"]) == (16, 20)
    assert "Each of 20 images was a test image once, in 5 outer folds" in record["notes"][0]
    for one in record["results"]:
        assert one["n_test"] == sum(map(sum, one["confusion"])) == 20
        assert one["measured_by"] == "5 outer folds"
    folder = Path(record["report"]).parent
    for cell in (folder / "cells").iterdir():
        kept = json.loads((cell / "result.json").read_text())
        assert Counter(kept["fold"]) == dict.fromkeys(range(5), 4)
        assert sorted(kept["truth"]) == [0] * 10 + [1] * 10
        assert not list(cell.glob("fold-*"))
        assert {path.name for path in cell.iterdir()} == {"result.json", "probabilities.npy"}
    # groups are never on both sides, and a given test split stays
    write_splits(tmp_path / "given", per_class=8)
    words = ["compare", "given", "--size", 32, "--strategies", "logreg", "--sizes", "8"]
    given = json.loads(fx(*words, "--store", "given.zarr", "--json").out)
    assert {one["measured_by"] for one in given["results"]} == {"test rows"}


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
    write_splits(tmp_path / "data", per_class=9)
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
    write_splits(tmp_path / "my data", per_class=8)
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
    write_splits(tmp_path / "data", per_class=16)
    words = ["--size", 32, "--sizes", "8,24", "--strategies", "logreg,finetune:1", "--epochs", 2]
    said = fx("compare", *words, "--dry-run", "--json")
    assert said.status == 0, said.err
    planned = json.loads(said.out)
    cells = [(c["strategy"], c["n_train"], c["seed"]) for c in planned["cells"]]
    assert cells == [
        (strategy, size, seed)
        for size, seed in ((8, 0), (24, 0), (8, 1), (24, 1), (8, 2), (24, 2))
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
    write_splits(tmp_path / "data", per_class=16)
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


@pytest.mark.parametrize(
    ("backbones", "said"),
    [
        ("efficientnet_lite0,resnet81", "unknown backbone 'resnet81'"),
        ("efficientnet_lite0,small_cnn", "small_cnn has 4 blocks; got finetune:5"),
        (",", "--backbone names 0 networks"),
    ],
)
def test_all_networks_are_opened_before_any_is_used(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch, backbones: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(tmp_path / "data", per_class=4)
    words = ["--size", 32, "--weights", "random", "--strategies", "finetune:5"]
    answer = fx("compare", "--backbone", backbones, *words)
    assert answer.status == 1
    assert said in " ".join(answer.err.split())
    assert not Path("features.zarr").exists()


def test_several_backbones_are_compared_on_the_same_rows(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_splits(tmp_path / "data", per_class=9)
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
    ("n_train", "distance", "chosen", "beaten", "agrees", "said"),
    [
        (100, 0.2, "logreg", "", True, "few images (100; many from 2,000), like"),
        (100, 0.8, "svm on resnet18", "", True, "unlike those"),
        (5000, 0.2, "finetune:all", "svm", True, "many images"),
        # what the rule advises was measured and lost, was not measured, or did not lose
        (5000, 0.2, "svm", "finetune:1", False, "contradicts it: svm is better."),
        (5000, 0.2, "svm", "logreg", None, "does not decide that."),
        (100, None, "finetune:1", "", None, "no batch norm"),
    ],
)
def test_the_quadrant_is_named_and_whether_the_measurement_agrees(
    n_train: int, distance: float | None, chosen: str, beaten: str, agrees: bool, said: str
) -> None:
    found = describe_quadrant(n_train, distance, chosen, [beaten] if beaten else [])
    assert found.agrees is agrees
    assert said in found.said
