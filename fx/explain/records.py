"""What explaining images gives."""

from __future__ import annotations

from extract.images import FailedImage
from extract.records import Record
from fx.explain.nearest import NearestImage


class Explanation(Record, frozen=True):
    """Why a model says what it says of one image.

    Attributes
    ----------
    path : of the image
    label, probability : what the model says of it
    explained, explained_probability : the class that the heat map is of
    heat : whether any part of the image speaks for that class; None where there is no heat map
    nearest : training images, the nearest first
    png : file with all of it
    """

    path: str
    label: str
    probability: float
    explained: str
    explained_probability: float
    heat: bool | None
    nearest: tuple[NearestImage, ...]
    png: str


class Explanations(Record, frozen=True):
    """Why a model says what it says of images.

    Attributes
    ----------
    model : as it was named
    page : file that shows all explanations
    explanations : of the images that can be read
    failed : the others
    map_side : parts across and down that heat maps tell apart; None where there are none
    nearest_by : the distance, and the features that it is of; empty where there are none
    notes : what is missing, and why; what is not as in predictions
    """

    model: str
    page: str
    explanations: tuple[Explanation, ...]
    failed: tuple[FailedImage, ...]
    map_side: int | None
    nearest_by: str
    notes: tuple[str, ...]
