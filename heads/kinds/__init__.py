"""The heads: one a module, each with what fits it, its choices and how it is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extract.registry import Registry

if TYPE_CHECKING:
    from heads.learner import HeadKind

__all__ = ["HEADS"]


class _Heads(Registry["HeadKind"]):
    """The package's modules."""

    def __getitem__(self, name: str) -> HeadKind:
        # first, since it imports scikit-learn without pandas
        import heads.learner

        return super().__getitem__(name)


HEADS: Registry[HeadKind] = _Heads(__name__, "HEAD", "head")
