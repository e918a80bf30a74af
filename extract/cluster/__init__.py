"""Stage one on many machines: Ray Data reads and computes, and one process commits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from extract.errors import FxError

if TYPE_CHECKING:
    from extract.extraction import Fill


def fill_on(cluster: str) -> Fill:
    """Have a Ray cluster read the images and compute their features.

    Parameters
    ----------
    cluster : address of a cluster, ``ray://HOST:PORT`` or ``HOST:PORT``; or ``ray``, for the one
        that ``RAY_ADDRESS`` names, or one on this machine that lives as long as the extraction

    Raises
    ------
    FxError
        If Ray is not installed.
    """
    try:
        # here: what the machines of a cluster import from this package needs no torch
        from extract.cluster.filling import fill
    except ImportError as error:
        if error.name != "ray":
            raise
        raise FxError(
            "`cluster` takes Ray, which is not installed; "
            "install the extra: pip install 'fx-images[ray]'"
        ) from error
    return partial(fill, cluster)
