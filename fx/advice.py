"""Advice before anything is trained: what the images are, and which strategy to try first."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.comparison.cells import ComparisonContext
from fx.comparison.cost import CostModel, DatasetSize
from fx.comparison.networks import networks_of, settled
from fx.comparison.plan import Cell, Plan
from fx.comparison.preview import amounts_of
from fx.comparison.quadrant import describe_quadrant
from fx.first_look import Sample, look_at, sampled
from fx.options import DEFAULT_BACKBONE, Options, open_backbone, open_engine
from fx.output import Begin

if TYPE_CHECKING:
    from extract.images import ImageSource

LOOKED_AT_IN_ALL = 2_000  # images, of all networks together
STRATEGIES = ("logreg", "svm", "finetune:1", "finetune:all")


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
    ``predicted_seconds``), ``quadrant`` (see ``fx.comparison.quadrant``), ``strategy``

    Raises
    ------
    FxError
        If there are no labelled images of two classes, or none of those looked at can be read.
    """
    from extract.images import find_images

    source = find_images(images, max_image_mb=options.max_image_mb)
    dataset_size = amounts_of(source)
    if options.backbone is None:
        options = replace(options, backbone=",".join(_at_hand()))
    asked = [one for one, _ in networks_of(options, Plan())]
    some = sampled(source, LOOKED_AT_IN_ALL // len(asked))
    looked = [_look_with(one, some, source, dataset_size, begin) for one in asked]
    networks = [network for network, _ in looked]
    best = max(networks, key=lambda one: one["logreg"])
    quadrant = describe_quadrant(dataset_size.training, best["distance"], None)
    counts = Counter(str(e.label) for e in source.entries if e.label is not None)
    return {
        "images": str(images),
        "n_train": dataset_size.training,
        "n_test": dataset_size.test,
        "classes": dict(sorted(counts.items())),
        "imbalance": max(counts.values()) / min(counts.values()),
        "sample": looked[0][1],
        "networks": networks,
        "quadrant": quadrant,
        "strategy": _strategy(quadrant, best),
    }


def _look_with(
    options: Options,
    some: ImageSource,
    source: ImageSource,
    dataset_size: DatasetSize,
    begin: Begin,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Look at some of the images with one network: its record, and what is odd about them."""
    backbone = open_backbone(options)
    engine = open_engine(options, backbone)
    sample, odd = look_at(some, backbone, engine, begin(f"looking, {backbone.name}"))
    context = ComparisonContext(
        settled(options, backbone), Plan().epochs, None, "", "", options.out
    )
    cost_model = CostModel(context, source, dataset_size)
    begin("trying")(1, 1)
    network = {
        "backbone": backbone.name,
        "size": backbone.preprocessing.size,
        "distance": sample.distance,
        "n": len(sample.labels),
        **_scores(sample),
        "extraction_seconds": sample.seconds / len(some.entries) * dataset_size.images,
        "predicted_seconds": {
            name: cost_model.cell(Cell(name, dataset_size.training, 0)) + cost_model.shared(name)
            for name in STRATEGIES
        },
    }
    return network, odd


def _at_hand() -> list[str]:
    from extract.backbones import list_backbones

    names = [one.name for one in list_backbones() if one.at_hand and one.pretrained]
    return sorted(names, key=lambda name: name != DEFAULT_BACKBONE)


def _scores(sample: Sample) -> dict[str, float | None]:
    """LogME, H-score, and the cross-validated accuracy of two probes."""
    from extract.errors import FxError
    from heads.fitting import fit_head
    from heads.transferability import h_score, logme

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
