"""Images explained one by one, as ``fx explain`` does it: pictures, and a page of all."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from extract.errors import FxError
from extract.files import Place, place, write_whole
from extract.images import FailedImage, ImageEntry, ImageSource, LoadedImage, Reading, image_place
from fx.explain.explainer import Explainer
from fx.explain.heat_maps import MISSING
from fx.explain.nearest import NearestImage
from fx.explain.pictures import data_uri, overlay, save_picture
from fx.explain.records import Explanation, Explanations
from fx.options import Options
from fx.output import Begin, Progress
from fx.report import render
from fx.stages.models import OpenModel, folder_of, open_model
from fx.stages.predict import vectors_of
from fx.stages.predictions import images_to_label

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = "index.html"
MOST_IMAGES = 200  # on one page
THUMBNAIL = 192  # pixels
MOST_NAMED = 5  # classes in a message
LONGEST_NAME = 80


def explain_images(
    model: Path,
    images: Sequence[Path],
    options: Options,
    *,
    label: str | None = None,
    nearest: int = 5,
    begin: Begin,
) -> Explanations:
    """Show why a model says what it says of images: a page, and a PNG of each.

    Parameters
    ----------
    model : folder of a fitted head or a fine-tuned network
    images : files, folders or tables
    options : device, precision, the store that has the training images, and where to write
    label : class to explain; None for the one that the model names
    nearest : how many training images are shown
    begin : given what is being done, returns a progress callback

    Raises
    ------
    CannotWrite
        If there is no room, or nothing can be written there.
    FxError
        If grad-cam is not installed, the model or the class is none, or there are no images.
    """
    if find_spec("pytorch_grad_cam") is None:
        raise FxError(MISSING)
    source = _images(images, options.reading)
    opened = open_model(model, options)
    number = None if label is None else _number(label, opened.classes)
    explainer = Explainer(opened)
    if nearest:
        explainer.find_training_images(folder_of(model), options, begin)
    failed = [FailedImage(path, reason) for path, reason in source.skipped]
    shown: list[_Shown] = []
    for loaded, features in _looked_at(opened, source, begin("explaining")):
        if features is None:
            failed.append(FailedImage(loaded.row.path, loaded.row.note))
            continue
        file = options.out / _file_name(len(shown) + 1, loaded.row.path)
        shown.append(_explained(explainer, opened, loaded, features, number, nearest, file))
    notes = list(explainer.notes)
    notes += [explainer.why_no_heat_map] if explainer.why_no_heat_map else []
    if nearest and explainer.why_no_nearest:
        notes.append(f"no nearest training images: {explainer.why_no_nearest}")
    result = Explanations(
        model=str(place(model)),
        page=str(options.out / PAGE),
        explanations=tuple(one.explanation for one in shown),
        failed=tuple(failed),
        map_side=explainer.map_side,
        nearest_by=explainer.nearest_by,
        notes=tuple(notes),
    )
    page = render("explanations.html", title="fx explain", result=result, shown=shown)
    write_whole(options.out / PAGE, page)
    return result


@dataclass(frozen=True)
class _Shown:
    """An explanation, and its pictures as data URIs: what the network sees, the map, the nearest.

    ``itself`` says of each of the nearest whether it is the very image that is explained.
    """

    explanation: Explanation
    seen: str
    map: str
    nearest: list[tuple[NearestImage, str, bool]]


def _explained(
    explainer: Explainer,
    opened: OpenModel,
    loaded: LoadedImage,
    features: NDArray[np.float32],
    number: int | None,
    nearest: int,
    file: Place,
) -> _Shown:
    """Explain one image, and draw it into a file."""
    assert loaded.pixels is not None, "an image with features"
    probabilities = opened.probabilities(features[None])[0]
    said = int(probabilities.argmax())
    asked = said if number is None else number
    seen, map_, heat = loaded.pixels[0], None, None
    if not explainer.why_no_heat_map:
        drawn = explainer.heat_map(loaded.pixels, asked)
        map_, heat = overlay(seen, drawn), bool(drawn.any())
    near = [] if explainer.why_no_nearest else explainer.nearest(features, nearest)
    images = [(one, one.thumbnail(THUMBNAIL), one.key == loaded.row.key.hex()) for one in near]
    explanation = Explanation(
        path=loaded.row.path,
        label=opened.classes[said],
        probability=float(probabilities[said]),
        explained=opened.classes[asked],
        explained_probability=float(probabilities[asked]),
        heat=heat,
        nearest=tuple(near),
        png=str(file),
    )
    pictures = [(f"called ({explanation.probability:.2f})", explanation.label, seen)]
    pictures += [] if map_ is None else [("what speaks for", explanation.explained, map_)]
    pictures += [(f"near ({one.distance:.2f})", one.label, image) for one, image, _ in images]
    save_picture(file, pictures)
    return _Shown(explanation, data_uri(seen), "" if map_ is None else data_uri(map_), images)


def _images(paths: Sequence[Path], reading: Reading) -> ImageSource:
    """Join the images of several files, folders and tables, each once."""
    found = [images_to_label(path, reading) for path in paths]
    places = [_named(one.root, entry.path) for one in found for entry in one.entries]
    names = dict.fromkeys(places)
    if len(names) > MOST_IMAGES:
        raise FxError(f"{len(names):,} images are too many for one page of {MOST_IMAGES}")
    entries = tuple(ImageEntry(name, None, None, None) for name in names)
    skipped = tuple(each for one in found for each in one.skipped)
    return ImageSource(Path.cwd(), "unlabelled", entries, skipped, reading.max_image_mb)


def _named(root: Place, path: str) -> str:
    where = image_place(root, path)
    return os.path.relpath(where) if isinstance(where, Path) else str(where)


def _number(label: str, classes: Sequence[str]) -> int:
    if label in classes:
        return classes.index(label)
    near = difflib.get_close_matches(label, classes, 3)
    have = f"nearest: {', '.join(near)}" if near else f"it has: {', '.join(classes[:MOST_NAMED])}"
    raise FxError(f"the model has no class {label!r}; {have}")


def _looked_at(
    opened: OpenModel, source: ImageSource, progress: Progress
) -> Iterator[tuple[LoadedImage, NDArray[np.float32] | None]]:
    """Every image as the first network sees it, and its features, or None."""
    looked_at, total = itertools.count(1), len(opened.engines) * len(source.entries)
    streams = [
        vectors_of(source, engine, crops, lambda: progress(next(looked_at), total))
        for engine, crops in opened.engines
    ]
    for found in zip(*streams, strict=True):
        vectors = [vector for _, vector in found if vector is not None]
        whole = np.concatenate(vectors) if len(vectors) == len(found) else None
        yield found[0][0], whole


def _file_name(number: int, path: str) -> str:
    """Name a PNG after its image, with a number before it: names may come twice."""
    safe = re.sub(r"[^\w.-]", "_", Path(path).stem, flags=re.ASCII)[:LONGEST_NAME]
    return f"{number:03d}-{safe}.png"
