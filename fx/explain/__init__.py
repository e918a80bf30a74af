"""What a model's answers rest on: heat maps of images, and the training images nearest to them."""

from fx.explain.explainer import Explainer
from fx.explain.explaining import explain_images
from fx.explain.nearest import NearestImage
from fx.explain.pictures import data_uri, overlay
from fx.explain.records import Explanation, Explanations
from fx.explain.small_maps import small_heat_maps

__all__ = [
    "Explainer",
    "Explanation",
    "Explanations",
    "NearestImage",
    "data_uri",
    "explain_images",
    "overlay",
    "small_heat_maps",
]
