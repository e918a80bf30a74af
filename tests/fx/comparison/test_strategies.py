"""Strategies: what is added is seen everywhere; what is spelled is understood or refused."""

import csv
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, write_classes
from sklearn.metrics import cohen_kappa_score

from extract.errors import FxError
from fx.comparison.context import OpenContext, Subset
from fx.comparison.strategies import STRATEGIES, Fitted, Strategy, strategy_of
from fx.records import Comparison
from fx.report import write_report
from fx.runs import Run
from heads.kinds import HEADS
from heads.metrics import METRICS, Metric

Fx = Callable[..., Said]


class LargestClass(Strategy):
    """Predicts the largest class of the training rows, whatever the image."""

    needs_backbone = False

    @property
    def headline(self) -> str:
        return "Predict the largest class"

    def fit(self, opened: OpenContext, subset: Subset) -> Fitted:
        classes, test = tuple(opened.snapshot.classes), opened.snapshot.split("test")
        counts = Counter(str(row.label) for row in subset.rows)
        shares = np.array([counts[name] for name in classes]) / len(subset.rows)
        return Fitted(np.tile(shares, (len(test), 1)), classes)


def kappa(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return float(cohen_kappa_score(labels, probabilities.argmax(axis=1)))


@pytest.fixture
def added() -> Iterator[None]:
    STRATEGIES.add("largest_class", LargestClass("largest_class"), "The largest class, always.")
    METRICS.add("kappa", Metric("kappa", "Cohen's kappa", kappa), "Agreement beyond chance.")
    yield
    STRATEGIES.remove("largest_class")
    METRICS.remove("kappa")


@pytest.mark.usefixtures("added")
def test_an_added_strategy_and_metric_are_seen_wherever_the_others_are(
    tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(inspect.getsource(LargestClass).splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", per_class=20)
    assert "The largest class, always." in fx("compare", "--help").out
    words = ["compare", "--size", 32, "--sizes", "8", "--seeds", 1]
    words += ["--strategies", "knn,largest_class"]
    planned = fx(*words, "--dry-run")
    assert planned.status == 0, planned.err
    assert "largest_class" in planned.out
    said = fx(*words, "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    knn, largest = record["results"]
    assert largest["strategy"] == "largest_class"
    assert largest["kappa"] == 0
    assert knn["kappa"] > 0
    assert "c" not in largest
    folder = Path(record["report"]).parent
    with (folder / "results.csv").open(newline="") as file:
        assert [float(row["kappa"]) for row in csv.DictReader(file)] == [knn["kappa"], 0]
    page = Path(record["report"]).read_text()
    assert '<th scope="row">largest_class</th>' in page
    assert '<th scope="col" class="number">Cohen&#39;s kappa</th>' in page
    told = fx(*words).out
    assert "Cohen's kappa" in told
    assert "largest_class" in told
    assert max(map(len, told.splitlines())) <= 80
    # what was written is read as what it was
    comparison = Run(folder).result(Comparison)
    assert json.loads(json.dumps(comparison.as_json())) == record
    # a script may read it by the JSON's names
    assert comparison["results"][0]["accuracy"] == knn["accuracy"]
    again = write_report(tmp_path / "again.html", comparison, title="again")
    assert "Cohen&#39;s kappa" in again.read_text()


def test_every_head_is_a_strategy() -> None:
    for name in HEADS:
        assert STRATEGIES[name].on_features
        assert STRATEGIES.help(name) == HEADS.help(name)


@pytest.mark.parametrize(
    ("spelled", "headline"),
    [
        ("finetune:1", "Fine-tune the last block"),
        ("finetune:3 on resnet18", "Fine-tune the last 3 blocks"),
        ("finetune:all", "Fine-tune the whole network"),
        ("small_cnn", "Train a small network from scratch"),
    ],
)
def test_a_strategy_is_found_as_it_is_spelled(spelled: str, headline: str) -> None:
    strategy = strategy_of(spelled)
    assert strategy.spelled == spelled.split(" on ")[0]
    assert strategy.headline == headline


@pytest.mark.parametrize(
    "spelled", ["forest", "finetune", "finetune:some", "logreg:2", "scratch:1"]
)
def test_what_is_misspelled_is_refused(spelled: str) -> None:
    with pytest.raises(FxError, match=r"choose from|got"):
        strategy_of(spelled)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ('{"results": 3}', "results"),
        ('{"results": [3]}', "results"),
        ('{"results": [{"strategy": "svm", "n_train": "many", "seed": 0}]}', "n_train"),
        (
            '{"results": [{"strategy": "svm", "n_train": 8, "seed": 0, "accuracy": "good"}]}',
            "scores",
        ),
        ('{"estimates": [{"strategy": "svm"}]}', "estimates"),
        ('{"classes": ["a", 3]}', "classes"),
        ("[]", "object"),
        ("{", "result.json"),
    ],
)
def test_a_damaged_comparison_is_one_error(tmp_path: Path, wrong: str, where: str) -> None:
    (tmp_path / "result.json").write_text(wrong)
    with pytest.raises(FxError, match=rf"is damaged.*{where}|{where} is damaged"):
        Run(tmp_path).result(Comparison)
