"""Families of backbones, one a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extract.registry import Registry

if TYPE_CHECKING:
    from extract.backbones.families._family import Family

FAMILIES: Registry[Family] = Registry(__name__, "FAMILY", "family of backbones")
