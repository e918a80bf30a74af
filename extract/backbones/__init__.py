"""Frozen networks that turn an image into a vector: names, weights, preprocessing."""

from extract.backbones.backbone import Backbone, load_backbone, make_spec
from extract.backbones.by_name import cut_points, resolve_weights
from extract.backbones.compiler import import_compiler, without_compiler
from extract.backbones.families import FAMILIES
from extract.backbones.families._family import Architecture, Family
from extract.backbones.info import BackboneInfo, backbone_info, list_backbones
from extract.backbones.weights import check_numbers
