"""Cropped copies: features propose pairs of images, and aligned thumbnails confirm them.

A pair is proposed where an image is nearer to another one than to most: by the ratio of its
distance to that of a farther neighbour, after D. Lowe, "Distinctive image features from
scale-invariant keypoints" (2004). It is confirmed where a part of one image, found by correlation
from coarse to fine, has the perceptual hash of the whole other one: by the rule for near-copies.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from joblib import cpu_count
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from extract.files import Place
from extract.images import (
    ImageRow,
    UnreadableImage,
    are_mirrored,
    decode,
    hash_of_thumbnail,
    read_image,
)
from extract.store import FeatureSet

# Pixels a side that a network must see: features of smaller images propose too little.
LEAST_SIZE = 96
# Most pairs whose images are opened, of an image at most so many, and which neighbour's distance
# theirs is compared with, and how near to it at the most.
MOST_PAIRS, PAIRS_EACH, FARTHER, MAX_RATIO = 1_000, 3, 11, 0.8
# Images whose features are in memory: of the one side, of the other, and as they are read. Of
# features longer than this, such as whole maps, evenly spaced numbers are compared.
ROWS, OTHERS, READ, LONGEST = 2_048, 4_096, 1_024, 4_096

SIDE = 128  # of thumbnails, pixels
SMALL = 64  # of those that are aligned finely, and hashed
TINY = 32  # of those that are aligned coarsely
COARSE, FINE = 12, 24  # cells a side that are correlated
# Below this the best coarse correlation is no reason to look closer: the least of 2,200 crops of
# photographs and of CIFAR-10 was 0.90.
LEAST_CORRELATION = 0.8
LARGEST_FILE, ANY_MB = 2**32, 2**20  # these very bytes have been let in before


def find_parts(
    features: FeatureSet, root: str | Place, rows: Sequence[ImageRow], others: Sequence[ImageRow]
) -> dict[int, tuple[int, bool]]:
    """Find images of which another one is a part, or the other way round, mirrored or not.

    Computing takes n · m · d multiplications, of features of length d, and memory for some
    thousand images' features; at most 1,000 pairs are then looked at, which takes about 2 ms for
    each image that is opened and 3 ms for each pair. Parts are found from 5/8 of the other's sides
    on. What has more than ten images as near as its own copy is missed, as in the frames of a film.

    Parameters
    ----------
    features : of all images
    root : folder, or place on object storage, that paths are relative to
    rows : n images
    others : m images that they are compared with

    Returns
    -------
    dict
        For a row that was found, the number of the other one, and whether that is mirrored.
    """
    pairs = _proposed(features, [row.key for row in rows], [row.key for row in others])
    wanted = {rows[i] for i, _ in pairs} | {others[j] for _, j in pairs}
    with ThreadPoolExecutor(cpu_count()) as pool:
        opened = dict(zip(wanted, pool.map(lambda row: _thumbnail(root, row), wanted), strict=True))
    found: dict[int, tuple[int, bool]] = {}
    # matrices this small take several threads many times as long
    with threadpool_limits(1, user_api="blas"):
        for i, j in pairs:
            one, other = opened[rows[i]], opened[others[j]]
            if i not in found and one is not None and other is not None:
                mirrored = is_part(one, other)
                if mirrored is not None:
                    found[i] = j, mirrored
    return found


def _proposed(
    features: FeatureSet, keys: Sequence[bytes], others: Sequence[bytes]
) -> list[tuple[int, int]]:
    """Rows of two sets that may show one image, the most likely first."""
    ratios: list[NDArray[np.floating]] = [np.empty(0, np.float32)]
    pairs: list[NDArray[np.intp]] = [np.empty((0, 2), np.intp)]
    for start in range(0, len(keys), ROWS):
        cosines, nearest = _neighbours(features, keys[start : start + ROWS], others)
        distances = 1 - cosines
        if len(others) < FARTHER:  # there is no farther one: all are looked at
            distances[:] = 0
        ratio = distances[:, :PAIRS_EACH] / np.maximum(distances[:, -1:], 1e-6)
        i, rank = np.nonzero(ratio <= MAX_RATIO)
        ratios.append(ratio[i, rank])
        pairs.append(np.stack([start + i, nearest[i, rank]], axis=1))
    best = np.argsort(np.concatenate(ratios), kind="stable")[:MOST_PAIRS]
    return [(int(i), int(j)) for i, j in np.concatenate(pairs)[best]]


def _neighbours(
    features: FeatureSet, keys: Sequence[bytes], others: Sequence[bytes]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Cosines of each image's nearest others, and their numbers, the nearest first."""
    mine = _directions(features, keys)
    cosines, nearest = torch.empty(len(keys), 0), torch.empty(len(keys), 0, dtype=torch.int64)
    for start in range(0, len(others), OTHERS):
        some = mine @ _directions(features, others[start : start + OTHERS]).T
        values, places = some.topk(min(FARTHER, some.shape[1]))
        cosines, order = torch.cat([cosines, values], dim=1).topk(min(FARTHER, start + len(some.T)))
        nearest = torch.cat([nearest, places + start], dim=1).gather(1, order)
    return cosines.numpy(), nearest.numpy()


def _directions(features: FeatureSet, keys: Sequence[bytes]) -> torch.Tensor:
    """Features of length 1: float32 tensor of shape (len(keys), at most LONGEST)."""
    step = -(-features.dim // LONGEST)
    read = [
        # a copy, so that what is left out is freed
        torch.from_numpy(features.features(keys[start : start + READ])[:, ::step].copy())
        for start in range(0, len(keys), READ)
    ]
    return torch.nn.functional.normalize(torch.cat(read))


def _thumbnail(root: str | Place, row: ImageRow) -> NDArray[np.uint8] | None:
    """Read an image as ``is_part`` takes it; None where it is no longer what the row says."""
    try:
        data = read_image(root, row.path, LARGEST_FILE)
        if hashlib.sha256(data).digest() != row.key:
            return None
        image = decode(data, at_least=SIDE, max_image_mb=ANY_MB)
    except (OSError, UnreadableImage, MemoryError):
        return None
    return grey_thumbnail(image)


def grey_thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return a whole image as a grey square of (128, 128), as ``is_part`` takes it."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("L"))


def is_part(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool | None:
    """Say whether one of two images is a part of the other, which may be scaled and stretched.

    Parameters
    ----------
    one, other : uint8 arrays of shape (128, 128), from ``grey_thumbnail``

    Returns
    -------
    bool or None
        Whether it is mirrored; None where neither is a part of the other.
    """
    for part, whole in ((one, other), (other, one)):
        cells = _means(part, _WHOLE, _WHOLE, COARSE)
        sought = _standardised(np.concatenate([cells, cells[..., ::-1]]))
        tiny = _means(whole, _WHOLE, _WHOLE, TINY)[0, 0]
        correlations = _standardised(_means(tiny, _SPANS, _SPANS, COARSE)) @ sought.T
        place, mirrored = divmod(int(correlations.argmax()), 2)
        if correlations[place, mirrored] < LEAST_CORRELATION:
            continue
        row, column = _SPANS[place // len(_SPANS)], _SPANS[place % len(_SPANS)]
        turned = part[:, ::-1] if mirrored else part
        sought = _standardised(_means(turned, _WHOLE, _WHOLE, FINE))
        small = _means(whole, _WHOLE, _WHOLE, SMALL)[0, 0]
        for step in (1 / 32, 1 / 64, 1 / 128, 1 / 256, 1 / 512):
            rows, columns = (np.clip(span + step * _MOVES, 0, 1) for span in (row, column))
            place = (_standardised(_means(small, rows, columns, FINE)) @ sought[0]).argmax()
            row, column = rows[place // len(_MOVES)], columns[place % len(_MOVES)]
        a = hash_of_thumbnail(_means(turned, _WHOLE, _WHOLE, SMALL)[0, 0])
        b = hash_of_thumbnail(_means(whole, row[None], column[None], SMALL)[0, 0])
        if a.any() and b.any() and not are_mirrored(a[None], b[None]).any():
            return bool(mirrored)
    return None


# Spans of an image's side, from where to where: all of it, those that are tried first, and how the
# ends of one are then moved.
_WHOLE = np.array([[0.0, 1.0]])
_SPANS = np.array(
    [
        (start / TINY, (start + length) / TINY)
        for length in (20, 23, 26, 29, 31, 32)
        for start in range(TINY + 1 - length)
    ]
)
_MOVES = np.array([(start, end) for start in (0, -1, 1) for end in (0, -1, 1)])


def _means(
    image: NDArray[np.uint8] | NDArray[np.float32],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    cells: int,
) -> NDArray[np.float32]:
    """Divide parts of an image into cells, as many down as across, and average each.

    Parameters
    ----------
    image : (side, side)
    rows, columns : (k, 2) and (l, 2) spans; every one with every one is a part

    Returns
    -------
    float32 array of shape (k, l, cells, cells)
    """
    down, across = (_averaging(spans, cells, len(image)) for spans in (rows, columns))
    means: NDArray[np.float32] = down.dot(image).dot(across.T)
    return means.reshape(len(rows), cells, len(columns), cells).swapaxes(1, 2)


def _averaging(spans: NDArray[np.float64], cells: int, side: int) -> NDArray[np.float32]:
    """Matrix (k · cells, side) that averages a line of pixels over the cells of its spans."""
    ends = side * (spans[:, :1] + np.diff(spans) * np.arange(cells + 1) / cells)
    # of every pixel, the share that lies before an end
    before = np.clip(ends[:, :, None] - np.arange(side), 0, 1)
    shares = np.diff(before, axis=1) / np.diff(ends)[:, :, None]
    return shares.reshape(-1, side).astype(np.float32)


def _standardised(parts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of mean 0 and length 1, whose products are correlations; 0 where all is one grey."""
    rows: NDArray[np.float32] = parts.reshape(-1, parts.shape[-2] * parts.shape[-1])
    rows = rows - rows.mean(axis=1, keepdims=True)
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None] + 1e-3
    return rows
