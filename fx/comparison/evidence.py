"""The images behind a comparison's numbers: mistakes, disputes, and a map of the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.stages.rows import keys_of
from fx.thumbnails import thumbnail

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract.images import ImageRow, Snapshot
    from extract.store import FeatureSet

MISTAKES = 12  # of each strategy
DISPUTED = 24
ON_MAP = 1_000
GALLERY_PIXELS, MAP_PIXELS = 128, 48
COMPONENTS = 50  # that t-SNE starts from, as its authors do
FEWEST_ON_MAP = 10


def gather_evidence(
    cells: Sequence[Mapping[str, Any]], snapshot: Snapshot, features: FeatureSet
) -> dict[str, Any]:
    """Collect what the report shows of single images.

    Parameters
    ----------
    cells : records of ``fx.comparison.cells``, with ``predicted``, ``confidence`` and ``truth``
    snapshot : of the images
    features : of the first network

    Returns
    -------
    dict that JSON can hold: ``mistakes`` (strategy → images), ``disputed`` (images), ``map``
    (points); an image has ``path``, ``label``, ``said`` and ``image``, a data URI
    """
    largest = max(int(cell["n_train"]) for cell in cells)
    shown: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        if cell["n_train"] == largest and "confidence" in cell:
            shown.setdefault(cell["strategy"], cell)
    test = snapshot.split("test")
    gallery = _Gallery(Path(snapshot.root), test, snapshot.classes)
    return {
        "n_train": largest,
        "mistakes": {name: gallery.mistakes(cell) for name, cell in shown.items()},
        "disputed": gallery.disputed(shown),
        "map": _map(snapshot, features),
    }


class _Gallery:
    """Test images with what was said of them."""

    def __init__(self, root: Path, rows: Sequence[ImageRow], classes: Sequence[str]) -> None:
        self.root, self.rows, self.classes = root, rows, classes

    def mistakes(self, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The mistakes that a strategy was most sure of, the surest first."""
        wrong = [
            (-sure, i)
            for i, (said, true, sure) in enumerate(
                zip(cell["predicted"], cell["truth"], cell["confidence"], strict=True)
            )
            if said != true
        ]
        return [
            self._image(i, f"{self.classes[cell['predicted'][i]]} ({-sure:.2f})")
            for sure, i in sorted(wrong)[:MISTAKES]
        ]

    def disputed(self, cells: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The images that strategies disagree on, those first that they were surest of."""
        found = []
        for i in range(len(self.rows)):
            said = {
                name: (cell["predicted"][i], cell["confidence"][i]) for name, cell in cells.items()
            }
            sure: dict[int, float] = {}
            for number, confidence in said.values():
                sure[number] = max(sure.get(number, 0.0), confidence)
            if len(sure) > 1:
                found.append((-sorted(sure.values())[-2], i, said))
        return [
            self._image(
                i,
                "; ".join(
                    f"{name}: {self.classes[n]} ({sure:.2f})" for name, (n, sure) in said.items()
                ),
            )
            for _, i, said in sorted(found, key=lambda one: one[:2])[:DISPUTED]
        ]

    def _image(self, index: int, said: str) -> dict[str, Any]:
        row = self.rows[index]
        image = thumbnail(self.root / row.path, row.key, GALLERY_PIXELS)
        return {"path": row.path, "label": str(row.label), "said": said, "image": image}


def _map(snapshot: Snapshot, features: FeatureSet) -> list[dict[str, Any]]:
    """Lay out some images so that like features lie near each other (t-SNE)."""
    rows = _stratified([row for row in snapshot.rows if row.split], ON_MAP)
    if len(rows) < FEWEST_ON_MAP:
        return []
    places = _places(features.features(keys_of(rows)))
    root = Path(snapshot.root)
    return [
        {
            "x": round(float(x), 2),
            "y": round(float(y), 2),
            "label": str(row.label),
            "path": row.path,
            "image": thumbnail(root / row.path, row.key, MAP_PIXELS),
        }
        for row, (x, y) in zip(rows, places, strict=True)
    ]


def _stratified(rows: Sequence[ImageRow], count: int) -> list[ImageRow]:
    """Take as many of each class as its share, those with the first hashes."""
    by_class: dict[str, list[ImageRow]] = {}
    for row in sorted(rows, key=lambda row: row.key):
        by_class.setdefault(str(row.label), []).append(row)
    share = min(1.0, count / len(rows))
    return [
        row
        for label in sorted(by_class)
        for row in by_class[label][: max(1, int(share * len(by_class[label])))]
    ][:count]


def _places(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count, dim = vectors.shape
    reduced = PCA(min(COMPONENTS, dim, count), random_state=0).fit_transform(vectors)
    perplexity = min(30.0, (count - 1) / 3)
    places: NDArray[np.float32] = TSNE(perplexity=perplexity, random_state=0).fit_transform(reduced)
    return places
