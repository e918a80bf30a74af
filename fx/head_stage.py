"""Stage two as the command runs it: a head on stored features, measured, kept with its plots."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.options import Options, choose_sets, read_snapshot
from fx.rows import check_labelled, groups_of, keys_of, labels_of
from fx.runs import finish, finished, run_directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import FeatureSet, FeatureStore, ImageRow, Snapshot
    from heads import Head, HeldOut

Begin = Callable[[str], Callable[[int, int], None]]

# Below so many labelled images without a given test split, outer folds measure instead of one.
FEW = 1_000


def fit_head_on_store(
    kind: str,
    options: Options,
    *,
    kernel: str = "rbf",
    normalize: str = "standard",
    class_weight: str | None = None,
    c: float | None = None,
    folds: int = 5,
    protocol: str | None = None,
    audit: bool = False,
    begin: Begin,
) -> dict[str, Any]:
    """Fit a head on stored features and measure it on rows that chose nothing.

    Those are the test rows. Where there are few labelled images and the test split was not the
    user's, they are the held-out rows of repeated outer folds, and the head is fitted on all.

    Parameters are those of ``heads.fit_head``; ``options.features`` names several sets that are
    joined; ``audit`` lists the images whose labels are the most doubtful. Where there are
    validation rows, those alone are audited: only they were held out.

    Raises
    ------
    FxError
        If there is no store, too little that is labelled, or features are missing.
    """
    from extract import FeatureStore, FxError
    from fx.audit import write_audit
    from heads import doubt_labels, fit_head, measure_by_resampling

    store = FeatureStore(options.store)
    sets = choose_sets(store, options)
    snapshot = read_snapshot(store, options)
    check_labelled(snapshot)
    choices: dict[str, Any] = {
        "kind": kind,
        "kernel": kernel,
        "normalize": normalize,
        "class_weight": class_weight,
        "c": c,
        "folds": folds,
        "protocol": protocol,
    }
    identity = {
        **choices,
        "kernel": kernel if kind == "svm" else None,
        "seed": options.seed,
        "features": [one.name for one in sets],
        "snapshot": snapshot.fingerprint,
        **({"audit": True} if audit else {}),
    }
    backbone = "+".join(dict.fromkeys(str(one.spec["backbone"]) for one in sets))
    directory = run_directory(options.out, f"{kind}-{backbone}", identity)
    before = finished(directory, fresh=options.fresh)
    if before is not None:
        return before
    begun = time.perf_counter()
    train, validation, test = (snapshot.split(name) for name in ("train", "val", "test"))
    metrics, notes = None, []
    if len(train) + len(test) < FEW and not validation and not snapshot.test_was_given:
        everything = train + test
        try:
            metrics = measure_by_resampling(
                _joined(sets, everything),
                labels_of(everything),
                groups=_groups(sets[0], everything),
                seed=options.seed,
                progress=begin("measuring on outer folds"),
                **choices,
            )
            train = everything
        except FxError as error:
            notes.append(f"one split of {len(test)} test images says little, but {error}")
    rows = [*train, *validation]
    features, n = _joined(sets, rows), len(train)
    head = fit_head(
        features[:n],
        labels_of(train),
        groups=_groups(sets[0], train),
        validation=(features[n:], labels_of(validation)) if validation else None,
        spec=_together([one.spec for one in sets]),
        source=_together([{"weights": one.weights_source} for one in sets])
        | {"snapshot": snapshot.name, "images": snapshot.fingerprint},
        seed=options.seed,
        progress=begin(f"choosing among heads: {kind}"),
        **choices,
    )
    if metrics is None:
        head = head.tested(_joined(sets, test), labels_of(test))
    else:
        head = dataclasses.replace(head, metrics=metrics)
    head = dataclasses.replace(head, notes=(*notes, *head.notes))
    _keep(head, store, sets, directory, features)
    record = _record(head, directory, snapshot, backbone, validation, begun)
    if audit:
        record["audit"] = write_audit(
            directory, doubt_labels(_held_out(head)), rows, snapshot, head.classes
        )
    return finish(directory, record)


def _held_out(head: Head) -> HeldOut:
    assert head.held_out is not None, "a head that was just fitted"
    return head.held_out


def _keep(
    head: Head,
    store: FeatureStore,
    sets: Sequence[FeatureSet],
    directory: Path,
    features: NDArray[np.float32],
) -> None:
    from extract import Quantised
    from heads import Limits, save_head, write_plots

    save_head(head, directory)
    held_out = _held_out(head)
    Limits.of(features, held_out.splits, held_out.probabilities, held_out.labels).save(directory)
    write_plots(head, directory)
    if "network" in sets[0].spec:
        # predictions need the very network that made the features
        Quantised(*store.read_network(str(sets[0].spec["network"]))).write(directory)


def _record(
    head: Head,
    directory: Path,
    snapshot: Snapshot,
    backbone: str,
    validation: Sequence[ImageRow],
    begun: float,
) -> dict[str, Any]:
    return {
        "head": directory.name,
        "kind": head.kind,
        "kernel": head.kernel,
        "normalize": head.normalize,
        "path": directory,
        "backbone": backbone,
        "snapshot": snapshot.name,
        "classes": head.classes,
        "n_train": head.n_train,
        "n_validation": len(validation),
        **(head.metrics.as_dict() if head.metrics else {}),
        "c": head.c,
        "notes": head.notes,
        "seconds": time.perf_counter() - begun,
    }


def _joined(sets: Sequence[FeatureSet], rows: Sequence[ImageRow]) -> NDArray[np.float32]:
    """Read features of rows, those of several sets side by side."""
    import numpy as np

    keys = keys_of(rows)
    return np.concatenate([one.features(keys) for one in sets], axis=1)


def _groups(features: FeatureSet, rows: Sequence[ImageRow]) -> NDArray[np.intp] | None:
    return groups_of(rows, features.hashes(keys_of(rows)))


def _together(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return dict(records[0]) if len(records) == 1 else {"features": list(records)}
