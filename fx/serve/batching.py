"""Images of all requests, decoded by a few threads and classified together by one."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from extract.engines import resolve_device
from extract.errors import FxError
from extract.images import UnreadableImage, batched, mean_of_crops, read_pixels
from fx.options import Options
from fx.output import Begin
from fx.stages.models import OpenModel, folder_of, open_model

# Images that are classified together at the most, where the engine's own batch is not larger; an
# engine runs several small batches beside each other.
AT_ONCE = 16
THUMBNAIL = 192  # pixels
WAIT = 0.003  # seconds at the most, for images that are being decoded

Features = NDArray[np.float32]
Probabilities = NDArray[np.floating[Any]]


class Answer(NamedTuple):
    """What a model makes of an image: features (d,), and probabilities (classes,)."""

    features: Features
    probabilities: Probabilities


_Future = asyncio.Future[Answer | str]
_Item = tuple[Any, _Future]


@dataclass(frozen=True)
class ServedModel:
    """A model as it is served.

    Attributes
    ----------
    classes : in the order of the probabilities' columns
    read : makes of an image file's bytes what the network takes, in any thread; raises
        UnreadableImage
    features : of n such, float32 array of shape (n, d), in one thread at a time
    probabilities : of shape (n, classes), of features
    at_once : images that are classified together at the most
    explain : makes of what was read, and its answer, what ``/explain`` tells, in any thread; None
        where nothing can be told
    """

    classes: tuple[str, ...]
    read: Callable[[bytes], Any]
    features: Callable[[Sequence[Any]], Features]
    probabilities: Callable[[Features], Probabilities]
    at_once: int
    explain: Callable[[Any, Answer], dict[str, Any]] | None = None


def open_to_serve(model: Path, options: Options, begin: Begin | None = None) -> ServedModel:
    """Open a head or a fine-tuned network, and run it once, so that the first image is quick.

    On CPUs the network takes one image at a time by default: OpenVINO is as quick as with more
    (resnet50, densenet121 and efficientnet_lite0 at 224 pixels; 4 to 10 % slower than with four at
    96), and an image that is alone need not pay for a whole batch.

    Parameters
    ----------
    model : its folder
    options : device, engine, precision, batch size, how large an image may be, and the store that
        has the training images
    begin : given what is being done, returns a progress callback; None for no explanations

    Raises
    ------
    FxError
        If it is an exported file, and as ``fx.stages.models.open_model`` does.
    """
    if model.suffix.lower() == ".onnx":
        raise FxError("exported files are not served; give the folder that it was exported from")
    if options.batch_size is None and options.engine != "torch":
        on_cpu = resolve_device(options.device).type == "cpu"
        options = replace(options, batch_size=1 if on_cpu else None)
    opened = open_model(model, options)
    engines = [(engine, engine.resident(), crops) for engine, crops in opened.engines]

    def read(data: bytes) -> list[NDArray[np.uint8]]:
        most = options.max_image_mb
        return [read_pixels(data, one.preprocessing, crops, most) for one, _, crops in engines]

    def features(images: Sequence[list[NDArray[np.uint8]]]) -> Features:
        found = []
        for place, (engine, run, crops) in enumerate(engines):
            batches = batched((pixels[place] for pixels in images), engine.batch_size)
            found.append(np.concatenate(list(mean_of_crops(run(batches), crops))))
        return np.concatenate(found, axis=1)

    sizes = [(crops, *[engine.preprocessing.size] * 2, 3) for engine, _, crops in engines]
    opened.probabilities(features([[np.zeros(size, np.uint8) for size in sizes]]))
    largest = max(engine.batch_size for engine, *_ in engines)
    explain = begin and _explain(opened, folder_of(model), options, begin)
    return ServedModel(
        opened.classes, read, features, opened.probabilities, max(AT_ONCE, largest), explain
    )


def _explain(
    opened: OpenModel, folder: Path, options: Options, begin: Begin
) -> Callable[[list[NDArray[np.uint8]], Answer], dict[str, Any]] | None:
    # here: it loads grad-cam, and with it matplotlib and OpenCV
    from fx.explain import Explainer, data_uri, overlay

    explainer = Explainer(opened)
    explainer.find_training_images(folder, options, begin)
    if explainer.why_no_heat_map and explainer.why_no_nearest:
        return None

    def explain(pixels: list[NDArray[np.uint8]], answer: Answer) -> dict[str, Any]:
        said = int(answer.probabilities.argmax())
        map_, near = None, []
        if not explainer.why_no_heat_map:
            heat = explainer.heat_map(pixels[0], said)
            map_ = data_uri(overlay(pixels[0][0], heat)) if heat.any() else None
        if not explainer.why_no_nearest:
            near = [
                # of where it lies on this machine, its name alone
                {"path": Path(one.path).name, "label": one.label, "distance": one.distance}
                | {"image": one.thumbnail(THUMBNAIL)}
                for one in explainer.nearest(answer.features)
            ]
        return {
            "label": opened.classes[said],
            "heat_map": map_,
            "why_no_heat_map": explainer.why_no_heat_map
            or ("" if map_ else "nothing in the image speaks for the class"),
            "nearest": near,
            "nearest_by": explainer.nearest_by,
        }

    return explain


class Batcher:
    """Classifies images that come one by one; a context manager, outside of which nothing runs.

    Attributes
    ----------
    model : ServedModel
    under_way : images that were asked for and are not answered
    observe : called with the number of images of each batch
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model
        self.under_way = 0
        self.observe: Callable[[int], None] = lambda count: None
        self._ready: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._ended = False
        self._readers = ThreadPoolExecutor(max(2, cpu_count()))

    def __enter__(self) -> Self:
        threading.Thread(target=self._work, name="classify", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._ended = True
        self._ready.put(None)

    async def classify(self, files: Sequence[BinaryIO]) -> list[Answer | str]:
        """Give what the model makes of each file, or why it cannot be read."""
        loop = asyncio.get_running_loop()
        futures: list[_Future] = [loop.create_future() for _ in files]
        self.under_way += len(files)
        try:
            for file, future in zip(files, futures, strict=True):
                self._readers.submit(self._read, file, future)
            return await asyncio.gather(*futures)
        finally:
            self.under_way -= len(files)

    def _read(self, file: BinaryIO, future: _Future) -> None:
        if future.cancelled():  # its time is over
            return
        try:
            self._ready.put((self.model.read(file.read()), future))
        except UnreadableImage as error:
            _answer([future], [str(error)])
        except MemoryError:
            _answer([future], ["not enough memory to decode it"])
        except Exception as error:
            _answer([future], [error])

    def _work(self) -> None:
        while not self._ended:
            items = self._batch()
            if not items:
                continue
            pixels, futures = zip(*items, strict=True)
            self.observe(len(items))
            try:
                features = self.model.features(pixels)
                rows = zip(features, self.model.probabilities(features), strict=True)
                _answer(futures, [Answer(*row) for row in rows])
            except Exception as error:
                _answer(futures, [error] * len(items))

    def _batch(self) -> list[_Item]:
        """Wait for an image, and a moment for others that are on their way."""
        items: list[_Item] = []
        item = self._ready.get()
        until = time.monotonic() + WAIT
        while item is not None:
            if not item[1].cancelled():
                items.append(item)
            if len(items) == self.model.at_once:
                break
            left = until - time.monotonic() if self.under_way > len(items) else 0.0
            try:
                item = self._ready.get(timeout=max(0.0, left))
            except queue.Empty:
                break
        return items


def _answer(
    futures: Sequence[_Future],
    answers: Sequence[Answer | str | Exception],
) -> None:
    """Have the event loop give the answers, all at once."""

    def give() -> None:
        for future, answer in zip(futures, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    with suppress(RuntimeError):  # the loop has ended, and nobody waits
        futures[0].get_loop().call_soon_threadsafe(give)
