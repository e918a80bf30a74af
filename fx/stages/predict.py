"""Labels for new images, from a head on features or a fine-tuned network."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from extract.engines import Engine
from extract.errors import FxError, listed
from extract.files import Place, place
from extract.images import (
    FailedImage,
    ImageEntry,
    ImageSource,
    LoadedImage,
    batched,
    load_images,
    mean_of_crops,
)
from fx.options import Options
from fx.output import Begin, Progress
from fx.stages.models import OpenModel, folder_of, open_model
from fx.stages.predictions import Wanted, images_to_label
from fx.stages.records import Prediction, Predictions
from heads.limits import Limits, groups_needed

LABELLED_AT_ONCE = 256
WARM_BATCHES = 4  # that are not timed
MOST_NAMED = 5  # classes in a note


def predict_images(
    model: Path,
    images: Path,
    options: Options,
    *,
    reject: float | None = None,
    conformal: float | None = None,
    wanted: Wanted | None = None,
    begin: Begin,
) -> Predictions:
    """Label every readable image.

    Parameters
    ----------
    model : folder of a fitted head or a fine-tuned network
    images : folder, table, or one image; ``-`` for paths on standard input
    options : device, precision and batch size
    reject : share of images like the training ones that may be answered with None, for being as
        unlike them as those from elsewhere
    conformal : how often ``labels``, a set for each image, holds the true one
    wanted : what is told of each image beside its label
    begin : given what is being done, returns a progress callback

    Raises
    ------
    FxError
        If the model is none, or there are no images.
    """
    model, images = Path(model), Path(images)  # of strings, as scripts have them
    opened = open_model(model, options)
    source = images_to_label(images, options.reading)
    vectors = outputs_of(opened, source, begin("predicting"))
    labeller, notes = _labeller(opened, folder_of(model), reject, conformal, wanted or Wanted())
    failed = [FailedImage(path, reason) for path, reason in source.skipped]
    predictions: list[Prediction] = []
    known: list[tuple[str, NDArray[np.float32]]] = []
    for path, found in vectors:
        if isinstance(found, str):
            failed.append(FailedImage(path, found))
        else:
            known.append((path, found))
        if len(known) == LABELLED_AT_ONCE:
            predictions += labeller.label(known)
            known.clear()
    if known:
        predictions += labeller.label(known)
    rejected: int | UnsetType = UNSET
    mean_set_size: float | UnsetType | None = UNSET
    if labeller.farthest is not None:
        rejected = sum(one.label is None for one in predictions)
    if labeller.least is not None:
        sizes = [len(one.labels or ()) for one in predictions]
        mean_set_size = float(np.mean(sizes)) if sizes else None
    return Predictions(
        str(place(model)),
        str(source.root),
        tuple(predictions),
        tuple(failed),
        rejected,
        mean_set_size,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Labeller:
    """Gives rows of features their labels.

    Attributes
    ----------
    model : that knows the classes
    wanted : what is told beside the label
    limits : of what it has learned, where such are asked for
    farthest : distance from the training images beyond which there is no label
    least : probability from which on each class is in the set of labels
    """

    model: OpenModel
    wanted: Wanted
    limits: Limits | None = None
    farthest: float | None = None
    least: NDArray[np.float64] | None = None

    def label(self, known: Sequence[tuple[str, NDArray[np.float32]]]) -> list[Prediction]:
        """Label images, given as paths and features."""
        features = np.stack([vector for _, vector in known])
        probabilities = self.model.probabilities(features)
        distances: list[float | UnsetType] = [UNSET] * len(known)
        if self.limits and self.farthest is not None:
            distances = [float(one) for one in self.limits.distance(features)]
        return [
            self._answer(path, row, distance)
            for (path, _), row, distance in zip(known, probabilities, distances, strict=True)
        ]

    def _answer(
        self, path: str, row: NDArray[np.float64], distance: float | UnsetType
    ) -> Prediction:
        classes = self.model.classes
        more: dict[str, Any] = {"distance": distance}
        if self.farthest is not None and distance is not UNSET and distance > self.farthest:
            more["label"] = None
        if self.least is not None:
            order = (-row).argsort()
            more["labels"] = tuple(classes[i] for i in order if row[i] >= self.least[i])
        return self.wanted.prediction(path, row, classes, **more)


def _labeller(
    model: OpenModel,
    folder: Path,
    reject: float | None,
    conformal: float | None,
    wanted: Wanted,
) -> tuple[_Labeller, list[str]]:
    """Find what labels go by, and what is to be noted where too little is known for it."""
    if reject is None and conformal is None:
        return _Labeller(model, wanted), []
    limits, notes = Limits.load(folder), []
    farthest = least = None
    if reject is not None:
        farthest = limits.farthest(reject)
        if farthest == float("inf"):
            notes.append(
                f"none is rejected: `reject` {reject:g} needs {groups_needed(1 - reject):,} "
                "held-out images, or groups of images"
            )
    if conformal is not None:
        classes = model.classes
        least = limits.least_probabilities(conformal, len(classes))
        needed = groups_needed(conformal)
        counts = limits.held_out_per_class(len(classes))
        if few := [f"{classes[i]} ({counts[i]})" for i in counts.argsort() if counts[i] < needed]:
            notes.append(
                f"in every set: {listed(few, MOST_NAMED)}; `conformal` {conformal:g} "
                f"needs {needed:,} held-out images of a class, or groups of images"
            )
        if not len(limits.labels):
            notes.append("sets may leave rare classes out, until the model is fitted again")
    return _Labeller(model, wanted, limits, farthest, least), notes


def milliseconds_per_image(model: Path, files: Sequence[Place], options: Options) -> float:
    """Time predictions with a model that is loaded: decoding, then the network, then the rest.

    Parameters
    ----------
    model : as in ``predict_images``
    files : images, any number; those that cannot be read are left out
    options : device, precision and batch size
    """
    opened = open_model(model, options)
    source = source_of(files, options.max_image_mb)
    timed = [seconds_per_image(engine, source, crops) for engine, crops in opened.engines]
    features = np.concatenate([vectors for _, vectors in timed], axis=1)
    begun = time.perf_counter()
    opened.probabilities(features)
    rest = (time.perf_counter() - begun) / len(features)
    return 1000 * (rest + sum(seconds for seconds, _ in timed))


def source_of(files: Sequence[Place], max_image_mb: int) -> ImageSource:
    """Make a source of single files, wherever they are."""
    entries = tuple(ImageEntry(str(file.absolute()), None, None, None) for file in files)
    return ImageSource(Path("/"), "unlabelled", entries, (), max_image_mb)


def seconds_per_image(
    engine: Engine, source: ImageSource, crops: int
) -> tuple[float, NDArray[np.float32]]:
    """Time decoding and then the network, with as many images as the source has.

    Returns
    -------
    the seconds, and the network's outputs, float32 array of shape (images that can be read, d)
    """
    begun = time.perf_counter()
    loaded = load_images(source, engine.preprocessing, crops=crops)
    pixels = [image.pixels for image in loaded if image.pixels is not None]
    if not pixels:
        raise FxError(f"none of the {len(source.entries)} images to be timed can be read")
    seconds = (time.perf_counter() - begun) / len(pixels)
    batches, run = list(batched(pixels, engine.batch_size)), engine.resident()
    done = list(mean_of_crops(run(iter(batches)), crops))
    # once more for the time: of what is returned first, the network was still being compiled
    again = itertools.islice(itertools.cycle(batches), WARM_BATCHES + max(4, len(batches)))
    times = [time.perf_counter() for _ in run(again)]
    images = (len(times) - WARM_BATCHES) * len(pixels) / len(batches)
    return seconds + (times[-1] - times[WARM_BATCHES - 1]) / images, np.concatenate(done)


def outputs_of(
    model: OpenModel, source: ImageSource, progress: Progress
) -> Iterator[tuple[str, NDArray[np.float32] | str]]:
    """Path and all outputs of every image, in order; in the outputs' place, why there are none."""
    total = len(model.engines) * len(source.entries)
    looked_at = itertools.count(1)
    streams = [
        vectors_of(source, engine, crops, lambda: progress(next(looked_at), total))
        for engine, crops in model.engines
    ]
    for found in zip(*streams, strict=True):
        vectors = [vector for _, vector in found if vector is not None]
        reasons = [loaded.row.note for loaded, vector in found if vector is None]
        yield found[0][0].row.path, reasons[0] if reasons else np.concatenate(vectors)


def vectors_of(
    source: ImageSource, engine: Engine, crops: int, tick: Callable[[], None]
) -> Iterator[tuple[LoadedImage, NDArray[np.float32] | None]]:
    """Every image as it was read, in order, and its output, float32 array of shape (d,).

    None where it cannot be read: its row's note says why. ``tick`` is called for each.
    """
    order: deque[LoadedImage] = deque()

    def pixels() -> Iterator[NDArray[np.uint8]]:
        for loaded in load_images(source, engine.preprocessing, crops=crops):
            tick()
            order.append(loaded)
            if loaded.pixels is not None:
                yield loaded.pixels

    batches = engine.run(batched(pixels(), engine.batch_size))
    for outputs in mean_of_crops(batches, crops):
        for vector in outputs:
            while order[0].pixels is None:
                yield order.popleft(), None
            yield order.popleft(), vector
    yield from ((loaded, None) for loaded in order)
