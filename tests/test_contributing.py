"""CONTRIBUTING.md tells the truth: each of its examples is found and used, in a file of its own."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from extract.backbones import FAMILIES, load_backbone
from extract.registry import Registry
from fx.comparison import STRATEGIES
from heads.evaluation import evaluate
from heads.files import load_head, save_head
from heads.fitting import fit_head
from heads.kinds import HEADS
from heads.metrics import METRICS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
FEATURES = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
LABELS = np.array(["ant", "bee", "cat"] * 20)
FEATURES[np.arange(60), np.arange(60) % 3] += 3


@pytest.fixture
def added(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put an example where its first line says, but for the folder; give its name."""
    path = Path(request.param)
    (tmp_path / path.name).write_text(EXAMPLES[request.param])
    package = importlib.import_module(".".join(path.parent.parts))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield path.stem
    sys.modules.pop(f"{package.__name__}.{path.stem}", None)


def check(registry: Registry[object], name: str) -> None:
    assert name in registry.names()
    assert registry.help(name).endswith(".")
    with pytest.raises(Exception, match=name):
        registry.check(f"{name}s")


def test_there_is_an_example_of_each() -> None:
    packages = (METRICS, HEADS, STRATEGIES, FAMILIES)
    assert [path.rpartition("/")[0].replace("/", ".") for path in EXAMPLES] == [
        registry.package for registry in packages
    ]


@pytest.mark.parametrize("added", ["heads/metrics/kappa.py"], indirect=True)
def test_the_metric_is_measured(added: str) -> None:
    check(METRICS, added)
    right = np.eye(3)[np.arange(30) % 3] * 0.8 + 0.1 / 1.5
    assert evaluate(right, np.arange(30) % 3, ["a", "b", "c"])[added] == 1


@pytest.mark.parametrize("added", ["heads/kinds/lda.py"], indirect=True)
def test_the_head_is_fitted_and_saved(added: str, tmp_path: Path) -> None:
    check(HEADS, added)
    check(STRATEGIES, added)
    head = fit_head(FEATURES, LABELS, kind=added)
    probabilities = head.predict_proba(FEATURES)
    assert (np.array(head.classes)[probabilities.argmax(axis=1)] == LABELS).mean() > 0.8
    save_head(head, tmp_path / "head")
    assert (load_head(tmp_path / "head").predict_proba(FEATURES) == probabilities).all()


@pytest.mark.parametrize("added", ["fx/comparison/strategies/largest.py"], indirect=True)
def test_the_strategy_fits_a_cell(added: str) -> None:
    check(STRATEGIES, added)
    rows = [SimpleNamespace(label=label) for label in "aab"]
    opened = SimpleNamespace(snapshot=SimpleNamespace(split=lambda name: rows))
    fitted = STRATEGIES[added].fit(opened, SimpleNamespace(rows=rows))
    assert fitted.classes == ("a", "b")
    assert fitted.probabilities == pytest.approx(np.array([[2 / 3, 1 / 3]] * 3))


@pytest.mark.parametrize("added", ["extract/backbones/families/toy.py"], indirect=True)
def test_the_family_gives_a_backbone(added: str) -> None:
    check(FAMILIES, added)
    assert load_backbone("toy", weights="random").dim == 16
