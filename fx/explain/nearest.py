"""The training images nearest to an image, in the space in which its model tells classes apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from extract.backbones import Backbone
from extract.errors import FxError
from extract.extraction import extract_files
from extract.files import disk_full_as_fx_error
from extract.images import ImageRow, Snapshot, image_place
from extract.records import Record
from extract.store import FeatureStore, Spec
from fx.options import Options
from fx.output import Begin
from fx.stages.models import OpenModel
from fx.stages.rows import keys_of
from fx.thumbnails import thumbnail
from heads.head import Head

if TYPE_CHECKING:
    from finetune.training import FinetunedModel

FEATURES = "training_features.zarr"  # in the folder of a fine-tuned network
AT_ONCE = 1_024  # images whose features are kept together
# 72 % of the five neighbours of cifar4's test images have the right label by cosines, 63 % by
# Euclidean distances, by which one of 600 images was a neighbour of 86 of 240
COSINE = "cosine"
SPACES = {"standard": "standardised features", "l2": "features of length 1", "none": "features"}

Features = NDArray[np.float32]


class NearestImage(Record, frozen=True):
    """A training image near to another image.

    Attributes
    ----------
    path : of the file when features were extracted
    label : its class
    distance : see ``Explainer.nearest_by``
    key : SHA-256 of its bytes, in hex
    """

    path: str
    label: str
    distance: float
    key: str

    def thumbnail(self, pixels: int) -> str:
        """Make a data URI of it; an empty one where the file is gone or another."""
        return thumbnail("/", self.path, bytes.fromhex(self.key), pixels)


@dataclass(frozen=True)
class TrainingImages:
    """Images that a model was fitted on, by their features.

    Attributes
    ----------
    root : folder that the rows' paths are relative to
    rows : labelled images
    space : maps features (n, d) to where distances are measured
    index : of all rows there
    by : the distance and the space, in words
    """

    root: str
    rows: Sequence[ImageRow]
    space: Callable[[Features], Features]
    index: NearestNeighbors
    by: str

    @classmethod
    def of(
        cls,
        snapshot: Snapshot,
        rows: Sequence[ImageRow],
        features: Features,
        *,
        space: Callable[[Features], Features],
        metric: str,
        of: str,
    ) -> TrainingImages:
        """Index rows by their features, float32 array of shape (n, d)."""
        index = NearestNeighbors(algorithm="brute", metric=metric.lower()).fit(space(features))
        by = f"{metric} distance of {of}, among {len(rows):,} training images"
        return cls(snapshot.root, rows, space, index, by)

    def nearest(self, features: Features, count: int) -> list[NearestImage]:
        """Find the rows nearest to one of features (d,), the nearest first."""
        found = self.index.kneighbors(self.space(features[None]), min(count, len(self.rows)))
        return [
            NearestImage(
                str(image_place(self.root, self.rows[i].path)),
                str(self.rows[i].label),
                float(distance),
                self.rows[i].key.hex(),
            )
            for distance, i in zip(*(part[0] for part in found), strict=True)
        ]


def training_images(
    opened: OpenModel, folder: Path, options: Options, begin: Begin
) -> TrainingImages:
    """Find the images that a model was fitted on.

    Parameters are those of ``Explainer.find_training_images``.

    Raises
    ------
    FxError
        If the store lacks them, or has other images by that name; it says so.
    """
    store = FeatureStore(options.store)
    if isinstance(opened.opened, Head):
        return _of_head(opened.opened, store)
    return _of_network(opened, opened.opened, folder, store, begin)


def _of_head(head: Head, store: FeatureStore) -> TrainingImages:
    if not head.source.images:
        raise FxError("the head does not say what images it was fitted on")
    snapshot = _snapshot(store, head.source.images)
    train, test = snapshot.split("train"), snapshot.split("test")
    # where outer folds measure, a head is fitted on all
    rows = train + test if head.n_train == len(train) + len(test) else train
    specs = msgspec.convert(head.spec.get("features", [head.spec]), list[Spec])
    sets = [found for spec in specs if (found := store.find(spec)) is not None]
    if len(sets) < len(specs):
        raise FxError(f"{store.path} has no longer the features that the head was fitted on")
    features = np.concatenate([one.features(keys_of(rows)) for one in sets], axis=1)
    return TrainingImages.of(
        snapshot,
        rows,
        features,
        # what the classifier sees; of those that vote, the very neighbours
        space=head.pipeline[0].transform,
        metric="Euclidean" if head.kind == "knn" else COSINE,
        of=SPACES[head.normalize],
    )


def _of_network(
    opened: OpenModel, model: FinetunedModel, folder: Path, store: FeatureStore, begin: Begin
) -> TrainingImages:
    if not model.record.snapshot_fingerprint:
        raise FxError("the network does not say what images it was trained on")
    snapshot = _snapshot(store, model.record.snapshot_fingerprint)
    rows = snapshot.split("train")
    return TrainingImages.of(
        snapshot,
        rows,
        _features_of_network(opened, model, folder / FEATURES, snapshot, rows, begin),
        space=lambda features: features,
        metric=COSINE,
        of="the fine-tuned network's features",
    )


def _features_of_network(
    opened: OpenModel,
    model: FinetunedModel,
    path: Path,
    snapshot: Snapshot,
    rows: Sequence[ImageRow],
    begin: Begin,
) -> Features:
    """Read features that were kept, or compute those of the files, which are still to be there."""
    keys = keys_of(rows)
    with suppress(FxError):
        return FeatureStore(path).last_extracted().features(keys)
    ((engine, _),) = opened.engines
    record, dim = model.record, model.network.classifier.in_features
    backbone = Backbone(
        name=record.backbone,
        module=engine.module,
        dim=dim,
        preprocessing=model.preprocessing,
        weights=str(path.parent),
        weights_hash=record.model_sha256 or "",
        trained_size=model.preprocessing.size,
        layers={"pool": dim},
        channels=record.channels,
    )
    files = [image_place(snapshot.root, row.path) for row in rows]
    progress = begin("training images, once")
    with disk_full_as_fx_error(path.parent):
        store = FeatureStore.create(path)
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            extract_files(some, backbone=backbone, engine=engine, store=store)
            progress(start + len(some), len(files))
    # by key: of a file that has changed there are none
    return store.last_extracted().features(keys)


def _snapshot(store: FeatureStore, fingerprint: str) -> Snapshot:
    """Find a state of the images, by whatever name it is kept."""
    for name in reversed(store.snapshots()):
        with suppress(FxError):
            snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
            if snapshot.fingerprint == fingerprint:
                return snapshot
    raise FxError(f"{store.path} does not know the images that the model was fitted on")
