"""Small heat maps for a report, where a model is kept that can draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from extract.errors import FxError
from extract.files import place
from extract.images import ImageEntry, ImageRow, ImageSource, load_images
from fx.explain.explainer import Explainer
from fx.explain.pictures import data_uri, overlay
from fx.options import Options
from fx.stages.models import open_model

PIXELS = 128


def small_heat_maps(
    folder: Path, root: str, images: Sequence[tuple[ImageRow, str]], options: Options
) -> list[str]:
    """Draw what speaks for a class in each of some images, as data URIs.

    Parameters
    ----------
    folder : of a model
    root : folder that the rows' paths are relative to
    images : rows, each with the name of a class
    options : device, and how images are read

    Returns
    -------
    as many; empty ones where there is no model, or it has no heat maps, or an image has changed
    """
    try:
        # maps are PyTorch's; another engine would only be made ready
        opened = open_model(folder, replace(options, engine="torch", precision="auto"))
    except FxError:
        return [""] * len(images)
    explainer = Explainer(opened)
    if explainer.why_no_heat_map:
        return [""] * len(images)
    ((engine, crops),) = opened.engines
    entries = tuple(ImageEntry(row.path, None, None, None) for row, _ in images)
    source = ImageSource(place(root), "unlabelled", entries, (), options.max_image_mb)
    loaded = load_images(source, engine.preprocessing, crops=crops)
    drawn = []
    for (row, label), one in zip(images, loaded, strict=True):
        if one.pixels is None or one.row.key != row.key or label not in opened.classes:
            drawn.append("")
            continue
        heat = explainer.heat_map(one.pixels, opened.classes.index(label))
        picture = Image.fromarray(overlay(one.pixels[0], heat))
        picture.thumbnail((PIXELS, PIXELS))
        drawn.append(data_uri(np.asarray(picture)))
    return drawn
