"""Advice before anything is trained: what the images are, and which strategy to try first."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from extract.errors import FxError
from fx.comparison.context import ComparisonContext, DatasetSize
from fx.comparison.cost import CostModel, dataset_size_of
from fx.comparison.networks import networks_of, settled
from fx.comparison.plan import Cell, Plan
from fx.comparison.recommend import SAMPLED_IMAGES, describe_quadrant, distance_of_source
from fx.options import DEFAULT_BACKBONE, Options, open_backbone, open_engine
from fx.output import Begin, Progress
from fx.records import Advice, NetworkAdvice, Quadrant, SampledImages, Sides

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract.backbones import Backbone
    from extract.engines import Engine
    from extract.images import ImageEntry, ImageSource

SAMPLED_IN_ALL = 2_000  # images, of all networks together
FOLDS = 3  # of the cross-validated accuracies
PROBES = ("knn", "logreg")
HEADERS = 200  # images whose size in pixels is read
TIMED_STRATEGIES = ("logreg", "svm", "finetune:1", "finetune:all")


@dataclass(frozen=True)
class _Found:
    """What is found out while images are read.

    Attributes
    ----------
    kept : images that can be read and are no copies
    hashes : of each of those, its perceptual hash
    failed, copies : records of the others
    """

    kept: list[ImageEntry]
    hashes: list[NDArray[np.uint8]]
    failed: list[dict[str, str]]
    copies: list[dict[str, str]]

    def images(
        self, source: ImageSource, backbone: Backbone, tick: Progress
    ) -> Iterator[NDArray[np.uint8]]:
        """Read images; give the pixels of those that are kept."""
        from extract.images import load_images

        seen: dict[bytes, str] = {}
        loading = load_images(source, backbone.preprocessing, hashed=True)
        for number, (entry, loaded) in enumerate(zip(source.entries, loading, strict=True), 1):
            tick(number, len(source.entries))
            if loaded.pixels is None or loaded.perceptual is None:
                self.failed.append({"path": entry.path, "reason": loaded.row.note})
                continue
            if (other := seen.setdefault(loaded.row.key, entry.path)) != entry.path:
                self.copies.append({"path": entry.path, "copy_of": other})
                continue
            self.kept.append(entry)
            self.hashes.append(loaded.perceptual)
            yield loaded.pixels

    def facts(self, source: ImageSource) -> SampledImages:
        """Say what is odd about the images."""
        import numpy as np

        from extract.images import near_copies

        hashes = np.stack(self.hashes)
        pairs = [(self.kept[i], self.kept[j]) for i, j in near_copies(hashes, hashes) if i < j]
        return SampledImages(
            n=len(source.entries),
            unreadable=self.failed,
            copies=self.copies,
            near_copies=[(one.path, other.path) for one, other in pairs],
            near_copies_across_splits=[
                (one.path, other.path) for one, other in pairs if one.split != other.split
            ],
            shorter_side=_shorter_side(source),
        )


def advise(images: Path, options: Options, *, begin: Begin) -> Advice:
    """Look at some of the images, and say which strategy to try first and why.

    Nothing is trained but probes on features, and nothing is kept.

    Parameters
    ----------
    images : folder or table of labelled images
    options : of backbones and weights several, between commas; by default every network whose
        weights are at hand
    begin : given what is being done, returns a progress callback

    Raises
    ------
    FxError
        If there are no labelled images of two classes, or none of those looked at can be read.
    """
    from extract.images import find_images

    source = find_images(images, options.reading).without_small_classes()
    dataset_size = dataset_size_of(source)
    if options.backbone is None:
        options = replace(options, backbone=",".join(_at_hand()))
    asked = [one for one, _ in networks_of(options, Plan())]
    some = _sampled(source, SAMPLED_IN_ALL // len(asked))
    seen = [_look_with(one, some, source, dataset_size, begin) for one in asked]
    best = max((network for network, _ in seen), key=lambda one: one.logreg or 0.0)
    quadrant = describe_quadrant(dataset_size.training, best.distance, None)
    counts = Counter(str(e.label) for e in source.entries if e.label is not None)
    return Advice(
        images=str(images),
        n_train=dataset_size.training,
        n_test=dataset_size.test,
        classes=dict(sorted(counts.items())),
        imbalance=max(counts.values()) / min(counts.values()),
        sample=seen[0][1],
        networks=[network for network, _ in seen],
        quadrant=quadrant,
        strategy=_strategy(quadrant, best),
        passed_over=dict(source.passed_over),
    )


def _look_with(
    options: Options,
    some: ImageSource,
    source: ImageSource,
    dataset_size: DatasetSize,
    begin: Begin,
) -> tuple[NetworkAdvice, SampledImages]:
    """Look at some of the images with one network: its record, and what is odd about them."""
    backbone = open_backbone(options)
    engine = open_engine(options, backbone)
    found, features, seconds = _look_at(some, backbone, engine, begin(f"looking, {backbone.name}"))
    context = ComparisonContext(settled(options, backbone), Plan().epochs, None, "", "", Path())
    # of one fit, however many outer folds would measure it
    one_fit = replace(dataset_size, folds=1)
    cost_model = CostModel(context, source, one_fit, seconds / len(some.entries))
    scores = _scores(found.kept, features, begin("trying heads"))
    tick, predicted = begin("timing strategies"), dict[str, float]()
    for number, name in enumerate(TIMED_STRATEGIES):
        tick(number, len(TIMED_STRATEGIES))
        cell = Cell(name, dataset_size.training, 0)
        predicted[name] = cost_model.cell(cell) + cost_model.shared(name)
    tick(len(TIMED_STRATEGIES), len(TIMED_STRATEGIES))
    network = NetworkAdvice(
        backbone=backbone.name,
        size=backbone.preprocessing.size,
        distance=distance_of_source(backbone, replace(some, entries=some.entries[:SAMPLED_IMAGES])),
        n=len(found.kept),
        **scores,
        extraction_seconds=cost_model.extraction(),
        predicted_seconds=predicted,
        notes=backbone.notes,
    )
    return network, found.facts(some)


def _at_hand() -> list[str]:
    from extract.backbones import list_backbones

    names = [one.name for one in list_backbones() if one.at_hand and one.pretrained]
    return sorted(names, key=lambda name: name != DEFAULT_BACKBONE)


def _scores(
    entries: Sequence[ImageEntry], features: NDArray[np.float32], tick: Progress
) -> dict[str, float | None]:
    """LogME, H-score, and the cross-validated accuracy of two probes."""
    from heads.fitting import fit_head
    from heads.transferability import h_score, logme

    counts = Counter(entry.label for entry in entries)
    kept = [i for i, entry in enumerate(entries) if counts[entry.label] >= 2]
    some, features = [entries[i] for i in kept], features[kept]
    labels = [str(entry.label) for entry in some]
    # what must not be torn apart in cross-validation
    groups = [f"path:{e.path}" if e.group is None else f"group:{e.group}" for e in some]
    together = groups if len(set(groups)) < len(groups) else None
    found: dict[str, float | None] = {"logme": None, "h_score": None, "knn": None, "logreg": 0.0}
    if len(set(labels)) < 2:
        return found
    found |= {"logme": logme(features, labels), "h_score": h_score(features, labels)}
    for number, kind in enumerate(PROBES):
        tick(number, len(PROBES))
        try:
            held_out = fit_head(features, labels, kind=kind, folds=FOLDS, groups=together).held_out
        except FxError:
            continue
        assert held_out is not None, "a head that was just fitted"
        found[kind] = float((held_out.probabilities.argmax(axis=1) == held_out.labels).mean())
    tick(len(PROBES), len(PROBES))
    return found


def _strategy(quadrant: Quadrant, best: NetworkAdvice) -> str:
    """Say what to try first, and what would settle it."""
    if quadrant.many:
        first = f"fx finetune --unfreeze all --backbone {best.backbone}"
    else:
        first = f"fx extract --backbone {best.backbone}, then fx fit-head logreg"
    return f"{first}; fx compare measures whether that is right"


def _sampled(source: ImageSource, count: int) -> ImageSource:
    """Take labelled images by a hash of their paths: any number of each class, the same again."""
    labelled = [entry for entry in source.entries if entry.label is not None]
    labelled.sort(key=lambda entry: hashlib.sha256(entry.path.encode(errors="replace")).digest())
    return replace(source, entries=tuple(labelled[:count]))


def _look_at(
    source: ImageSource, backbone: Backbone, engine: Engine, tick: Progress
) -> tuple[_Found, NDArray[np.float32], float]:
    """Read a sample and compute its features; say how long that took."""
    import numpy as np

    from extract.images import batched

    begun = time.perf_counter()
    found = _Found([], [], [], [])
    images = found.images(source, backbone, tick)
    batches = list(engine.run(batched(images, engine.batch_size)))
    if not batches:
        first = found.failed[0]["reason"]
        raise FxError(f"none of {len(found.failed):,} images can be read; the first: {first}")
    return found, np.concatenate(batches), time.perf_counter() - begun


def _shorter_side(source: ImageSource) -> Sides | None:
    """Pixels of the images' shorter sides: least, median and greatest."""
    import numpy as np

    from extract.images import UnreadableImage, image_size, largest_file, open_image

    sides = []
    for entry in source.entries[:HEADERS]:
        with suppress(OSError, UnreadableImage):
            largest = largest_file(source.max_image_mb)
            with open_image(source.root, entry.path, largest) as (file, _):
                sides.append(min(image_size(file)))
    if not sides:
        return None
    least, median, greatest = np.quantile(sides, [0, 0.5, 1], method="inverted_cdf")
    return Sides(int(least), int(median), int(greatest))
