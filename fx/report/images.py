"""The images behind a comparison's numbers: mistakes, disputes, and a map of the features."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from extract.images import ImageRow, Snapshot
from extract.records import Record
from extract.store import FeatureSet
from fx.records import Measurement
from fx.thumbnails import thumbnail

MISTAKES = 12  # of each strategy
DISPUTED = 24
ON_MAP = 1_000
GALLERY_PIXELS, MAP_PIXELS = 128, 48
COMPONENTS = 50  # that t-SNE starts from, as its authors do
FEWEST_ON_MAP = 10

# of each test image the class that was said, its probability, and the true class
_Answers = list[tuple[int, float, int]]


# given a strategy's name and test images with the classes that it said, draws as many data URIs
HeatMaps = Callable[[str, Sequence[tuple[ImageRow, str]]], Sequence[str]]


class ShownImage(Record, frozen=True):
    """A test image, its label, and what was said of it.

    ``image`` is a small copy as a data URI, ``heat_map`` another one of what speaks for the class
    that was said, where there is one.
    """

    path: str
    label: str
    said: str
    image: str
    heat_map: str = ""


class MapPoint(Record, frozen=True):
    """An image at its place on the map."""

    x: float
    y: float
    label: str
    path: str
    image: str


class Evidence(Record, frozen=True):
    """What a report shows of single images.

    Attributes
    ----------
    n_train : training images of the models that are shown
    mistakes : by strategy, those that it was most sure of
    disputed : test images to which strategies give different classes
    map : images by their features
    """

    n_train: int
    mistakes: dict[str, list[ShownImage]]
    disputed: list[ShownImage]
    map: list[MapPoint]


def gather_evidence(
    measured: Sequence[Measurement],
    snapshot: Snapshot,
    features: FeatureSet,
    tested: Sequence[ImageRow],
    heat_maps: HeatMaps | None = None,
) -> Evidence:
    """Collect what the report shows of single images.

    Parameters
    ----------
    measured : with what was said of each test image
    snapshot : of the images
    features : of the first network
    tested : the test images
    heat_maps : draws those of mistakes
    """
    largest = max(one.n_train for one in measured)
    shown: dict[str, _Answers] = {}
    for one in measured:
        if one.n_train == largest and one.predicted and one.confidence and one.truth:
            answers = list(zip(one.predicted, one.confidence, one.truth, strict=True))
            shown.setdefault(one.strategy, answers)
    gallery = _Gallery(snapshot.root, tested, snapshot.classes)
    return Evidence(
        largest,
        {name: gallery.mistakes(name, answers, heat_maps) for name, answers in shown.items()},
        gallery.disputed(shown),
        _map(snapshot, features),
    )


class _Gallery:
    """Test images with what was said of them."""

    def __init__(self, root: str, rows: Sequence[ImageRow], classes: Sequence[str]) -> None:
        self.root, self.rows, self.classes = root, rows, classes

    def mistakes(
        self, strategy: str, answers: _Answers, heat_maps: HeatMaps | None
    ) -> list[ShownImage]:
        """The mistakes that a strategy was most sure of, the surest first."""
        wrong = [(-sure, i) for i, (said, sure, true) in enumerate(answers) if said != true]
        shown = [(i, self.classes[answers[i][0]], -sure) for sure, i in sorted(wrong)[:MISTAKES]]
        drawn: Sequence[str] = [""] * len(shown)
        if heat_maps and shown:
            drawn = heat_maps(strategy, [(self.rows[i], said) for i, said, _ in shown])
        return [
            self._image(i, f"{said} ({sure:.2f})", heat_map)
            for (i, said, sure), heat_map in zip(shown, drawn, strict=True)
        ]

    def disputed(self, answers: Mapping[str, _Answers]) -> list[ShownImage]:
        """The images that strategies disagree on, those first that they were surest of."""
        found = []
        for i in range(len(self.rows)):
            said = {name: of_strategy[i][:2] for name, of_strategy in answers.items()}
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

    def _image(self, index: int, said: str, heat_map: str = "") -> ShownImage:
        row = self.rows[index]
        image = thumbnail(self.root, row.path, row.key, GALLERY_PIXELS)
        return ShownImage(row.path, str(row.label), said, image, heat_map)


def _map(snapshot: Snapshot, features: FeatureSet) -> list[MapPoint]:
    """Lay out some images so that like features lie near each other (t-SNE)."""
    rows = _stratified([row for row in snapshot.rows if row.split], ON_MAP)
    if len(rows) < FEWEST_ON_MAP:
        return []
    places = _places(features.features([row.key for row in rows]))
    return [
        MapPoint(
            round(float(x), 2),
            round(float(y), 2),
            str(row.label),
            row.path,
            thumbnail(snapshot.root, row.path, row.key, MAP_PIXELS),
        )
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
    return np.asarray(TSNE(perplexity=perplexity, random_state=0).fit_transform(reduced))
