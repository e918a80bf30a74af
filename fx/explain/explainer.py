"""Why a model gives its answers: for ``fx explain``, ``fx serve``, reports and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.errors import FxError
from fx.explain.heat_maps import HeatMaps
from fx.explain.nearest import NearestImage, TrainingImages, training_images
from fx.export.heads import HeadModule
from fx.options import Options
from fx.output import Begin
from fx.stages.models import OpenModel
from heads.head import Head

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Explainer:
    """Explains the answers of one model; may be called from several threads.

    Parameters
    ----------
    opened : the model

    Attributes
    ----------
    classes : in the order of their numbers
    why_no_heat_map : empty where there are heat maps
    why_no_nearest : empty where nearest training images are found, once they were sought
    nearest_by : what is near: a distance, and the space that it is measured in
    map_side : parts of an image across and down: heat maps are no finer; None where there are none
    notes : what is not as in predictions
    """

    def __init__(self, opened: OpenModel) -> None:
        self.classes = opened.classes
        self.notes: tuple[str, ...] = ()
        self.why_no_heat_map, self.why_no_nearest = "", "training images were not asked for"
        self.nearest_by = ""
        self.map_side: int | None = None
        self._opened = opened
        self._training: TrainingImages | None = None
        self._heat_maps: HeatMaps | None = None
        try:
            self._heat_maps = _heat_maps(opened)
        except FxError as error:
            self.why_no_heat_map = str(error)
            return
        self.map_side = self._heat_maps.side
        if any(engine.precision == "int8" for engine, _ in opened.engines):
            self.notes += (
                "heat maps are of the network in fp32, probabilities of the one in int8",
            )
        if any(crops > 1 for _, crops in opened.engines):
            self.notes += ("heat maps are of the centre square, one of those that are averaged",)

    def find_training_images(self, folder: Path, options: Options, begin: Begin) -> None:
        """Look for the images that the model was fitted on; ``why_no_nearest`` says how it went.

        Of a fine-tuned network their features are computed the first time, and kept in its folder.

        Parameters
        ----------
        folder : of the model
        options : the store, and the device
        begin : given what is being done, returns a progress callback
        """
        try:
            self._training = training_images(self._opened, folder, options, begin)
            self.nearest_by, self.why_no_nearest = self._training.by, ""
        except FxError as error:
            self.why_no_nearest = str(error)

    def heat_map(self, pixels: NDArray[np.uint8], class_index: int) -> NDArray[np.float32]:
        """Show which parts of an image speak for a class.

        Parameters
        ----------
        pixels : uint8 array of shape (crops, size, size, 3), or (size, size, 3), as the model's
            engine takes them
        class_index : of ``classes``

        Returns
        -------
        float32 array of shape (size, size), from 0 to 1, or all 0 where nothing speaks for it

        Raises
        ------
        FxError
            ``why_no_heat_map``.
        """
        if self._heat_maps is None:
            raise FxError(self.why_no_heat_map)
        return self._heat_maps.draw(pixels.reshape(-1, *pixels.shape[-3:]), class_index)

    def nearest(self, features: NDArray[np.float32], count: int = 5) -> Sequence[NearestImage]:
        """Find the training images nearest to an image.

        Parameters
        ----------
        features : float32 array of shape (d,), as ``OpenModel.probabilities`` takes their rows
        count : how many

        Returns
        -------
        the nearest first: path, label, distance

        Raises
        ------
        FxError
            ``why_no_nearest``.
        """
        if self._training is None:
            raise FxError(self.why_no_nearest)
        return self._training.nearest(features, count)


def _heat_maps(opened: OpenModel) -> HeatMaps:
    if len(opened.engines) > 1:
        raise FxError(f"no heat map: the features are {len(opened.engines)} sets, side by side")
    ((engine, _),) = opened.engines
    if not isinstance(opened.opened, Head):
        return HeatMaps(engine, opened.opened.network.classifier)
    if opened.opened.kind == "knn":
        raise FxError(
            "no heat map: votes of nearest neighbours have no gradient; those neighbours are the "
            "reason"
        )
    return HeatMaps(engine, HeadModule(opened.opened).steps)
