"""What fx has left on the disk, opened in Python: features, models, comparisons."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from PIL import Image

from extract.errors import FxError
from extract.files import fetched, place, read_record
from extract.records import as_html
from extract.store import FeatureStore
from fx.options import Options, choose_features, read_snapshot
from fx.records import Comparison
from fx.runs import RESULT, Run
from fx.stages.extractor import in_files
from fx.stages.models import OpenModel, open_model
from fx.stages.predict import outputs_of, source_of
from fx.stages.records import FinetunedModel, HeadResult

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class StoredImages:
    """Images of a snapshot, and their features.

    Attributes
    ----------
    features : float32 array of shape (n, d)
    labels, splits, groups : n each; None where there is none
    paths : n, relative to ``root``
    root : folder of the images
    spec : what the features mean
    """

    features: NDArray[np.float32]
    labels: tuple[str | None, ...]
    splits: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    paths: tuple[str, ...]
    root: str
    spec: dict[str, Any]

    def to_pandas(self) -> pandas.DataFrame:
        """Make a data frame of path, label, split, group, and the features by their numbers.

        Raises
        ------
        FxError
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise FxError("pandas is not installed; pip install pandas") from error
        about = {
            "path": self.paths,
            "label": self.labels,
            "split": self.splits,
            "group": self.groups,
        }
        return pandas.concat([pandas.DataFrame(about), pandas.DataFrame(self.features)], axis=1)

    def __repr__(self) -> str:
        return "{:,} images, {:,} features each".format(*self.features.shape)

    def _repr_html_(self) -> str:
        rows = zip(self.paths, self.labels, self.splits, strict=True)
        shown = [{"path": path, "label": label, "split": split} for path, label, split in rows]
        return f"<b>{self!r}</b>{as_html(shown)}"


@dataclass(frozen=True)
class Model:
    """A fitted head with its network, or a fine-tuned network.

    Attributes
    ----------
    path : its folder
    classes : in the order of the probabilities' columns
    result : how it was measured; None where its folder does not say
    """

    path: Path
    classes: tuple[str, ...]
    result: HeadResult | FinetunedModel | None
    _opened: OpenModel = field(repr=False)

    def predict(
        self, images: Iterable[str | os.PathLike[str] | NDArray[np.uint8] | Image.Image]
    ) -> NDArray[Any]:
        """Label images, given as to ``predict_proba``: n class names."""
        best = self.predict_proba(images).argmax(axis=1)
        return np.array([self.classes[index] for index in best], dtype=object)

    def predict_proba(
        self, images: Iterable[str | os.PathLike[str] | NDArray[np.uint8] | Image.Image]
    ) -> NDArray[np.float64]:
        """Say how likely each class is.

        Parameters
        ----------
        images : n, each a path, a uint8 array of shape (h, w, 3), RGB, or (h, w), grey, or one of
            PIL's

        Returns
        -------
        float64 array of shape (n, classes)

        Raises
        ------
        FxError
            Where an image cannot be read, or is none of these.
        """
        found = [np.empty((0, len(self.classes)))]
        with ExitStack() as stack:
            for paths in in_files(images, stack):
                source = source_of(paths, Options().max_image_mb)
                vectors = []
                for path, vector in outputs_of(self._opened, source, lambda done, total: None):
                    if isinstance(vector, str):
                        raise FxError(f"{path} cannot be read: {vector}; leave it out")
                    vectors.append(vector)
                if vectors:
                    found.append(self._opened.probabilities(np.stack(vectors)))
        return np.concatenate(found)

    def _repr_html_(self) -> str:
        if self.result is None:
            return f"<b>{type(self).__name__}</b>{as_html({'classes': list(self.classes)})}"
        return self.result._repr_html_()


def load(
    path: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    size: int | None = None,
    layer: str | None = None,
    crops: int | None = None,
    snapshot: str | None = None,
    precision: str = "auto",
    device: str = "auto",
    engine: str = "auto",
    batch_size: int | None = None,
) -> StoredImages | Model | Comparison:
    """Open what fx has left on the disk.

    Parameters
    ----------
    path : feature store, folder of a head or of a fine-tuned network, or of a comparison
    backbone, size, layer, crops, snapshot : of a store, which features of which images; by default
        those last extracted
    precision : of a store, that of the features; of a model, how its network is run
    device, engine, batch_size : of a model, how its network is run

    Raises
    ------
    FxError
        If there is none of these, or it is damaged.
    """
    folder = place(path)
    options = Options(
        store=folder,
        backbone=backbone,
        size=size,
        layers=(layer,) if layer else (),
        crops=crops,
        snapshot=snapshot,
        precision=precision,
        device=device,
        engine=engine,
        batch_size=batch_size,
    )
    if (folder / "zarr.json").exists():
        return _load_features(options)
    folder = fetched(folder)
    result = _load_result(folder)
    if isinstance(result, Comparison):
        return result
    opened = open_model(folder, options)
    return Model(folder, opened.classes, result, opened)


def _load_result(folder: Path) -> Comparison | HeadResult | FinetunedModel | None:
    try:
        plain = read_record(folder / RESULT, dict[str, Any])
    except (OSError, ValueError):
        # a model is one without it, too
        return None
    if "recommended" in plain:
        # the folder may have moved since
        return replace(Run(folder).result(Comparison), report=str(folder / "report.html"))
    if "head" in plain:
        return Run(folder).result(HeadResult)
    return Run(folder).result(FinetunedModel) if "unfreeze" in plain else None


def _load_features(options: Options) -> StoredImages:
    store = FeatureStore(options.store)
    found, snapshot = choose_features(store, options), read_snapshot(store, options)
    rows = [row for row in snapshot.rows if row.readable]
    return StoredImages(
        features=found.features([row.key for row in rows]),
        labels=tuple(row.label for row in rows),
        splits=tuple(row.split for row in rows),
        groups=tuple(row.group for row in rows),
        paths=tuple(row.path for row in rows),
        root=snapshot.root,
        spec=found.spec.to_dict(),
    )
