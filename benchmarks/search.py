"""The search over heads against scikit-learn's own, on stored features, folds and grid the same.

Logistic regression against ``LogisticRegressionCV``, the RBF SVM against ``GridSearchCV(SVC)``,
both with two jobs, from features in memory to a classifier that was refitted on all training rows.
Every run is a process of its own; the parent takes the times, from the line that the child prints
when it has its features to the line that it prints when it is done. Accuracies are of the test
rows.

    fx extract ../shared/data/cifar4 --store features.zarr
    python benchmarks/search.py features.zarr --rows 400,4000,20000 --runs 3

With ``--whole`` it is ``fx fit-head logreg`` from its start to its end, on all rows of each store,
against a script that reads the features and runs ``LogisticRegressionCV``: seconds on the clock and
of CPU, on a machine of two cores. One that is not done after ``--limit`` seconds is stopped: the
ratio is then a bound.

    for set in "10 10" "100 10" "400 10" "1000 10" "10 50" "100 50" "400 50" "1000 50"; do
        python ../shared/cases/many_classes.py classes/${set/ /x} $set
        fx extract classes/${set/ /x} --store classes/${set/ /x}.zarr --size 96
    done
    python benchmarks/search.py classes/*.zarr --whole --limit 1200
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KINDS = ("logreg", "svm")
FOLDS = 5


def load(store: Path, rows: int) -> list:
    """Training features and labels, so many, the classes in turn; then those of all test rows."""
    import numpy as np

    from extract.images import Snapshot
    from extract.store import FeatureStore

    opened = FeatureStore(store)
    snapshot = Snapshot.from_parquet(*opened.read_snapshot(None))
    features = opened.last_extracted()
    train = sorted(snapshot.split("train"), key=lambda row: row.key)
    by_class = {c: [row for row in train if row.label == c] for c in snapshot.classes}
    some = [row for of_class in by_class.values() for row in of_class[: rows // len(by_class)]]
    return [
        part
        for chosen in (some, snapshot.split("test"))
        for part in (
            features.features([row.key for row in chosen]),
            np.array([str(row.label) for row in chosen]),
        )
    ]


def whole_reference(store: Path, values: int, folds: int) -> None:
    """Choose and fit scikit-learn's logistic regression on all training rows; print what it is."""
    import numpy as np
    from sklearn.metrics import log_loss

    from heads.fitting import make_folds
    from heads.kinds import HEADS

    X, y, X_test, y_test = load(store, sys.maxsize)
    classes, numbers = np.unique(y, return_inverse=True)
    splits, _ = make_folds(numbers, classes=classes.tolist(), folds=folds)
    grid = HEADS["logreg"].learner().grid(X, 1)[:values]
    fitted = theirs("logreg", X, y, grid, splits)
    p = fitted.search.predict_proba(fitted.scaler.transform(X_test))
    found = {
        "c": float(fitted.C_[0]),
        "accuracy": float((classes[p.argmax(axis=1)] == y_test).mean()),
        "log_loss": float(log_loss(y_test, p, labels=classes)),
    }
    print(json.dumps(found))


def whole(options: argparse.Namespace, store: Path, ours: bool) -> dict:
    """Run a command from its start to its end: seconds on the clock and of CPU, what it found."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, str(store), "--child", "whole"]
        command += ["--values", str(options.values), "--folds", str(options.folds)]
        if ours:
            command = [sys.executable, "-m", "fx", "fit-head", "logreg", str(store), "--json"]
            command += ["--folds", str(options.folds), "--out", out]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        # a session, so that its workers end with it
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            said, _ = process.communicate(timeout=options.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"seconds": options.limit, "stopped": True}
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
    after, record = resource.getrusage(resource.RUSAGE_CHILDREN), json.loads(said)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {name: record[name] for name in ("c", "accuracy", "log_loss")}
    return {"seconds": time.perf_counter() - start, "cpu": cpu, **found}


def compare_whole(options: argparse.Namespace) -> None:
    """Print a record a store, with the ratio of the medians."""
    for store in options.stores:
        runs: dict[bool, list[dict]] = {True: [], False: []}
        for _ in range(options.runs):
            for ours, found in runs.items():
                if not any(run.get("stopped") for run in found):
                    found.append(whole(options, store, ours))
                    print(store, "fx" if ours else "scikit-learn", found[-1], file=sys.stderr)
        seconds = {
            ours: statistics.median(run["seconds"] for run in found) for ours, found in runs.items()
        }
        record = {"store": store.stem, "fx": runs[True][-1], "scikit-learn": runs[False][-1]}
        at_least = "at least " if runs[False][-1].get("stopped") else ""
        record["times faster"] = f"{at_least}{seconds[False] / seconds[True]:.3g}"
        print(json.dumps(record), flush=True)


def child(ours: bool, kind: str, store: Path, rows: int, values: int, folds: int) -> None:
    import numpy as np

    from heads.fitting import fit_head, make_folds
    from heads.kinds import HEADS

    X, y, X_test, y_test = load(store, rows)
    classes, numbers = np.unique(y, return_inverse=True)
    splits, _ = make_folds(numbers, classes=classes.tolist(), folds=folds)
    learner = HEADS[kind].learner(kernel="rbf")
    middle = {"logreg": 0.1, "svm": 3.0}[kind]
    grid = learner.grid(X, 1)
    start = max(0, int(np.searchsorted(grid, middle)) - values // 2)
    grid = grid[start : start + values]
    type(learner).grid = lambda *_: grid  # type: ignore[method-assign]
    type(learner).extensible = False
    print("ready", flush=True)
    if ours:
        fitted = fit_head(X, y, kind=kind, folds=folds, jobs=2)
        chosen = fitted.c
    else:
        fitted = theirs(kind, X, y, grid, splits)
        best = fitted.C_[0] if kind == "logreg" else fitted.best_params_["svc__C"]
        chosen = float(best)
    print("done", flush=True)
    predicted = fitted.predict(X_test)
    print(json.dumps({"c": chosen, "accuracy": float((predicted == y_test).mean())}), flush=True)


def theirs(kind: str, X: object, y: object, grid: list, splits: list) -> object:
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind == "svm":
        machine = make_pipeline(StandardScaler(), SVC(cache_size=500))
        return GridSearchCV(machine, {"svc__C": grid}, cv=splits, n_jobs=2).fit(X, y)
    search = LogisticRegressionCV(
        Cs=grid,
        cv=splits,
        n_jobs=2,
        scoring="neg_log_loss",
        l1_ratios=(0.0,),
        max_iter=1000,
        use_legacy_attributes=False,
    )
    return _Scaled(search).fit(X, y)


class _Scaled:
    """scikit-learn's search on features that were standardised beforehand."""

    def __init__(self, search: object) -> None:
        from sklearn.preprocessing import StandardScaler

        self.scaler, self.search = StandardScaler(), search

    def fit(self, X: object, y: object) -> _Scaled:
        import numpy as np

        self.search.fit(self.scaler.fit_transform(X), y)
        self.C_ = np.ravel(self.search.C_)
        return self

    def predict(self, X: object) -> object:
        return self.search.predict(self.scaler.transform(X))


def timed(options: argparse.Namespace, kind: str, rows: int, ours: bool) -> dict:
    """Seconds from the child's first line to its second, and what it found."""
    command = [sys.executable, __file__, str(options.stores[0]), "--child", f"{kind}:{int(ours)}"]
    command += ["--rows", str(rows), "--values", str(options.values), "--folds", str(options.folds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [(line.strip(), time.perf_counter()) for line in process.stdout]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    times = dict(lines)
    return {"seconds": times["done"] - times["ready"], **json.loads(lines[-1][0])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", type=Path, nargs="+")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--limit", type=float, default=1200, help="seconds for a whole command")
    parser.add_argument("--rows", default="400,4000")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--values", type=int, default=10)
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child == "whole":
        whole_reference(options.stores[0], options.values, options.folds)
        return
    if options.child:
        kind, ours = options.child.split(":")
        child(
            ours == "1", kind, options.stores[0], int(options.rows), options.values, options.folds
        )
        return
    if options.whole:
        compare_whole(options)
        return
    for rows in map(int, options.rows.split(",")):
        for kind in options.kinds.split(","):
            runs: dict[bool, list[dict]] = {True: [], False: []}
            for _ in range(options.runs):
                for ours, found in runs.items():
                    found.append(timed(options, kind, rows, ours))
                    print(rows, kind, "fx" if ours else "scikit-learn", found[-1], file=sys.stderr)
            seconds = {
                ours: statistics.median(run["seconds"] for run in found)
                for ours, found in runs.items()
            }
            record = {"rows": rows, "kind": kind, "values": options.values, "folds": options.folds}
            record |= {"fx": runs[True][-1], "scikit-learn": runs[False][-1]}
            record["times faster"] = seconds[False] / seconds[True]
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
