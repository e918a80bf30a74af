"""Figures: matplotlib's, drawn without a screen, and written whole or not at all.

That no cache of matplotlib's can be written costs seconds, and is neither told nor an error.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from extract.files import UNFINISHED, disk_full_as_fx_error, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(beside: Path, **options: Any) -> Figure:
    """Make a figure to draw on; matplotlib is imported here, so that predictions do without it.

    Parameters
    ----------
    beside : folder that it is going to be written to
    options : of ``matplotlib.figure.Figure``

    Raises
    ------
    CannotWrite
        If there is no folder at all that matplotlib could use for a moment.
    """
    # it would tell of fonts, and of caches that it cannot write
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib.figure
    except OSError:
        # neither its own folder nor a temporary one can be made; of what is half imported, the
        # rest cannot be had
        for name in [one for one in sys.modules if one.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        with disk_full_as_fx_error(beside):
            beside.mkdir(parents=True, exist_ok=True)
            with (
                tempfile.TemporaryDirectory(suffix=UNFINISHED, dir=beside) as folder,
                patch.dict(os.environ, MPLCONFIGDIR=folder),
            ):
                import matplotlib.figure

    return matplotlib.figure.Figure(**options)


def save_png(figure: Figure, file: Path, *, dpi: int) -> None:
    """Draw a figure into a PNG file; raises as ``extract.files.durable.write_whole`` does."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    write_whole(file, drawn.getvalue())
