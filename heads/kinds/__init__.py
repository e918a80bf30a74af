"""The heads: one a module, each with what fits it, its choices and how it is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extract.registry import Registry

if TYPE_CHECKING:
    from heads.learner import HeadKind

__all__ = ["HEADS"]

HEADS: Registry[HeadKind] = Registry(__name__, "HEAD", "head")
