"""Exported files run by onnxruntime: images to labels, without torch and scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.errors import FxError, one_line
from extract.files import place, read_regular
from extract.images import (
    FailedImage,
    ImageEntry,
    ImageSource,
    UnreadableImage,
    decode,
    largest_file,
    read_image,
)
from fx.options import Options
from fx.output import Begin
from fx.stages.predictions import Wanted, images_to_label
from fx.stages.records import Prediction, Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_FILE = 2**31
BATCH_BYTES, BATCH_SIZE = 2**26, 64  # of images of one size that are run at once, at the most
AHEAD = 4  # images that are decoded before they are wanted, whole as they are


@dataclass(frozen=True)
class ExportedClassifier:
    """An exported file, open.

    Attributes
    ----------
    session : of onnxruntime
    classes : in the order of the probabilities' columns
    at_least : pixels; what the shorter side of an image is scaled to, by the network that sees most
    """

    session: Any
    classes: tuple[str, ...]
    at_least: int

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Classify uint8 images (n, height, width, 3): float32 array of shape (n, classes)."""
        found: NDArray[np.float32] = self.session.run(None, {"images": images})[0]
        return found


def load_file(file: Path | bytes) -> ExportedClassifier:
    """Open an exported file, or its bytes.

    Raises
    ------
    FxError
        If it is none, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise FxError(
            "exported files take onnxruntime, which is not installed: "
            "pip install 'fx-images[export]'"
        ) from error
    name = "the file" if isinstance(file, bytes) else str(file)
    try:
        data = file if isinstance(file, bytes) else read_regular(file, LARGEST_FILE)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            data, options, providers=onnxruntime.get_available_providers()
        )
        properties = session.get_modelmeta().custom_metadata_map
        classes = tuple(map(str, json.loads(properties["fx.classes"])))
        sizes = [int(one["resize"]) for one in json.loads(properties["fx.spec"])["preprocessing"]]
        (output,) = session.get_outputs()
        if len(classes) != output.shape[1]:
            raise ValueError(f"{len(classes)} classes for {output.shape[1]} probabilities")
    except OSError as error:
        raise FxError(f"{name} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise FxError(f"{name} is no file of fx export ({one_line(error)})") from error
    return ExportedClassifier(session, classes, max(sizes))


def predict_file(
    file: Path, images: Path, options: Options, *, wanted: Wanted | None = None, begin: Begin
) -> Predictions:
    """Label every readable image with an exported file.

    Parameters
    ----------
    file : written by ``fx export``
    images : folder, table, or one image; ``-`` for paths on standard input
    options : how tables are read, and which images are too large
    wanted : what is told of each image beside its label
    begin : given what is being done, returns a progress callback

    Raises
    ------
    FxError
        If the file is none, or there are no images.
    """
    classifier = load_file(file)
    source = images_to_label(images, options.reading)
    wanted = wanted or Wanted()
    failed = [FailedImage(path, reason) for path, reason in source.skipped]
    predictions: list[Prediction] = []
    progress, total = begin("predicting"), len(source.entries)
    for paths, pixels in _batches(source, classifier.at_least, failed):
        for path, row in zip(paths, classifier.probabilities(pixels), strict=True):
            predictions.append(wanted.prediction(path, row, classifier.classes))
        progress(len(predictions) + len(failed) - len(source.skipped), total)
    return Predictions(str(place(file)), str(source.root), tuple(predictions), tuple(failed))


def _batches(
    source: ImageSource, at_least: int, failed: list[FailedImage]
) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Decode images, a few ahead, and join neighbours of one size; add those that have none."""
    waiting: list[tuple[str, NDArray[np.uint8]]] = []

    def joined() -> tuple[list[str], NDArray[np.uint8]]:
        return [path for path, _ in waiting], np.stack([pixels for _, pixels in waiting])

    with ThreadPoolExecutor() as pool:
        entries = iter(source.entries)
        read = partial(_pixels, source=source, at_least=at_least)
        ahead = [pool.submit(read, entry) for entry in islice(entries, AHEAD)]
        while ahead:
            path, found = ahead.pop(0).result()
            ahead += [pool.submit(read, entry) for entry in islice(entries, 1)]
            if isinstance(found, str):
                failed.append(FailedImage(path, found))
                continue
            full = len(waiting) == BATCH_SIZE or len(waiting) * found.nbytes > BATCH_BYTES
            if waiting and (full or waiting[0][1].shape != found.shape):
                yield joined()
                waiting.clear()
            waiting.append((path, found))
    if waiting:
        yield joined()


def _pixels(
    entry: ImageEntry, source: ImageSource, at_least: int
) -> tuple[str, NDArray[np.uint8] | str]:
    """Path and pixels of an image, or in their place why there are none."""
    try:
        data = read_image(source.root, entry.path, largest_file(source.max_image_mb))
        image = decode(data, at_least=at_least, max_image_mb=source.max_image_mb)
        return entry.path, np.asarray(image)
    except UnreadableImage as error:
        return entry.path, str(error)
    except OSError as error:
        return entry.path, one_line(error)
    except MemoryError:
        return entry.path, "not enough memory to decode it"
