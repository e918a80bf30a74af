"""Advice before anything is trained: what the images are, and which strategy to try first."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.cells import Bench
from fx.networks import networks_of, settled
from fx.options import DEFAULT_BACKBONE, Options, open_backbone, open_engine
from fx.plan import Cell, Plan
from fx.preview import amounts_of
from fx.quadrant import LOOKED_AT, describe_quadrant, likeness
from fx.trials import Trials

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import Backbone, Engine, ImageSource

Begin = Callable[[str], Callable[[int, int], None]]

LOOKED_AT_IN_ALL = 2_000  # images, of all networks together
HEADERS = 200  # images whose size in pixels is read
STRATEGIES = ("logreg", "svm", "finetune:1", "finetune:all")


@dataclass(frozen=True)
class _Sample:
    """Images that one network has seen.

    Attributes
    ----------
    labels : n of them, of the images that can be read and are no copies
    features : float32 array of shape (n, d)
    distance : see ``extract.similarity``
    seconds : that reading them and computing features took
    """

    labels: list[str]
    features: NDArray[np.float32]
    distance: float | None
    seconds: float


def advise(images: Path, options: Options, *, begin: Begin) -> dict[str, Any]:
    """Look at some of the images, and say which strategy to try first and why.

    Nothing is trained but probes on features, and nothing is kept.

    Parameters
    ----------
    images : folder or table of labelled images
    options : of backbones and weights several, between commas; by default every network whose
        weights are at hand
    begin : given what is being done, returns a progress callback

    Returns
    -------
    dict that JSON can hold: ``images``, ``n_train``, ``n_test``, ``classes`` (label → images),
    ``imbalance`` (largest over smallest class), ``sample`` (what was seen of the images that were
    looked at), ``networks`` (a record each: scores with their ``n``, ``distance``, ``size``,
    ``predicted_seconds``), ``quadrant`` (see ``fx.quadrant``), ``strategy``

    Raises
    ------
    FxError
        If there are no labelled images of two classes, or none of those looked at can be read.
    """
    from extract import find_images

    source = find_images(images)
    available, amounts = amounts_of(source)
    if options.backbone is None:
        options = replace(options, backbone=",".join(_at_hand()))
    asked = [one for one, _ in networks_of(options, Plan())]
    some = _sampled(source, LOOKED_AT_IN_ALL // len(asked))
    networks: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for one in asked:
        backbone = open_backbone(one)
        engine = open_engine(one, backbone)
        sample, seen = _look_at(some, backbone, engine, begin(f"looking, {backbone.name}"))
        facts = facts or seen
        bench = Bench(settled(one, backbone), Plan().epochs, "", "", one.out)
        trials = Trials(bench, source, amounts)
        begin("trying")(1, 1)
        networks.append(
            {
                "backbone": backbone.name,
                "size": backbone.preprocessing.size,
                "distance": sample.distance,
                "n": len(sample.labels),
                **_scores(sample),
                "extraction_seconds": sample.seconds / len(some.entries) * amounts.images,
                "predicted_seconds": {
                    name: trials.cell(Cell(name, available, 0)) + trials.shared(name)
                    for name in STRATEGIES
                },
            }
        )
    best = max(networks, key=lambda one: one["logreg"])
    quadrant = describe_quadrant(available, best["distance"], None)
    counts = Counter(str(e.label) for e in source.entries if e.label is not None)
    return {
        "images": str(images),
        "n_train": available,
        "n_test": amounts.test,
        "classes": dict(sorted(counts.items())),
        "imbalance": max(counts.values()) / min(counts.values()),
        "sample": facts,
        "networks": networks,
        "quadrant": quadrant,
        "strategy": _strategy(quadrant, best),
    }


def _at_hand() -> list[str]:
    from extract import list_backbones

    names = [one.name for one in list_backbones() if one.at_hand and one.pretrained]
    return sorted(names, key=lambda name: name != DEFAULT_BACKBONE)


def _sampled(source: ImageSource, count: int) -> ImageSource:
    """Take labelled images by a hash of their paths: any number of each class, the same again."""
    labelled = [entry for entry in source.entries if entry.label is not None]
    labelled.sort(key=lambda entry: hashlib.sha256(entry.path.encode(errors="replace")).digest())
    return replace(source, entries=tuple(labelled[:count]))


def _look_at(
    source: ImageSource, backbone: Backbone, engine: Engine, tick: Callable[[int, int], None]
) -> tuple[_Sample, dict[str, Any]]:
    """Compute features of a sample; say what is odd about its images."""
    import numpy as np

    from extract import FxError, batched, look, near_copies, perceptual_hash

    begun = time.perf_counter()
    seen: dict[bytes, str] = {}
    failed: list[dict[str, str]] = []
    labels: list[str] = []
    splits: list[str | None] = []
    paths: list[str] = []
    hashes: list[NDArray[np.uint8]] = []
    copies: list[dict[str, str]] = []

    def pictures() -> Any:
        looks = look(source, backbone.preprocessing)
        for number, (entry, looked) in enumerate(zip(source.entries, looks, strict=True), 1):
            tick(number, len(source.entries))
            if looked.pixels is None:
                failed.append({"path": entry.path, "reason": looked.row.note})
                continue
            if (other := seen.setdefault(looked.row.key, entry.path)) != entry.path:
                copies.append({"path": entry.path, "copy_of": other})
                continue
            labels.append(str(entry.label))
            splits.append(entry.split)
            paths.append(entry.path)
            hashes.append(perceptual_hash(looked.pixels[0]))
            yield looked.pixels

    batches = list(engine.run(batched(pictures(), engine.batch_size)))
    if not batches:
        raise FxError(
            f"none of {len(failed):,} images can be read; the first: {failed[0]['reason']}"
        )
    features = np.concatenate(batches)
    seconds = time.perf_counter() - begun
    stacked = np.stack(hashes)
    near = near_copies(stacked, stacked)
    pairs = [(int(i), int(j)) for i, j in near if i < j]
    leaks = [(i, j) for i, j in pairs if splits[i] != splits[j]]
    facts = {
        "n": len(source.entries),
        "unreadable": failed,
        "copies": copies,
        "near_copies": [[paths[i], paths[j]] for i, j in pairs],
        "near_copies_across_splits": [[paths[i], paths[j]] for i, j in leaks],
        "shorter_side": _shorter_side(source),
    }
    distance = likeness(backbone, replace(source, entries=source.entries[:LOOKED_AT]))
    return _Sample(labels, features, distance, seconds), facts


def _shorter_side(source: ImageSource) -> dict[str, int] | None:
    """Pixels of the pictures' shorter sides: least, median and greatest."""
    import numpy as np
    from PIL import Image

    sides = []
    for entry in source.entries[:HEADERS]:
        try:
            with Image.open(source.root / entry.path) as image:
                sides.append(min(image.size))
        except (OSError, Image.DecompressionBombError, SyntaxError, ValueError):
            continue
    if not sides:
        return None
    least, median, greatest = np.quantile(sides, [0, 0.5, 1], method="inverted_cdf")
    return {"least": int(least), "median": int(median), "greatest": int(greatest)}


def _scores(sample: _Sample) -> dict[str, float | None]:
    """LogME, H-score, and the cross-validated accuracy of two probes."""
    from extract import FxError
    from heads import fit_head, h_score, logme

    counts = Counter(sample.labels)
    kept = [i for i, label in enumerate(sample.labels) if counts[label] >= 2]
    labels, features = [sample.labels[i] for i in kept], sample.features[kept]
    found: dict[str, float | None] = {"logme": None, "h_score": None, "knn": None, "logreg": 0.0}
    if len(set(labels)) < 2:
        return found
    found |= {"logme": logme(features, labels), "h_score": h_score(features, labels)}
    for kind in ("knn", "logreg"):
        try:
            head = fit_head(features, labels, kind=kind, folds=3)
        except FxError:
            continue
        found[kind] = max(candidate.accuracy for candidate in head.search)
    return found


def _strategy(quadrant: dict[str, Any], best: dict[str, Any]) -> str:
    """Say what to try first, and what would settle it."""
    network = best["backbone"]
    if quadrant["many"]:
        first = f"fx finetune --unfreeze all --backbone {network}"
    else:
        first = f"fx extract --backbone {network}, then fx fit-head logreg"
    return f"{first}; fx compare measures whether that is right"
