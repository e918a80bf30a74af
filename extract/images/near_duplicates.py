"""Near-copies: the same image in another size or encoding, or mirrored, by perceptual hash."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from extract.images.crops import scaled_to
from extract.images.entries import ImageRow
from extract.images.splits import unit_of

# the first 16 rows of the orthonormal DCT-II of 64 values
_LOW_FREQUENCIES = np.cos(np.pi / 128 * np.outer(np.arange(16), np.arange(1, 128, 2))) / 32**0.5
_LOW_FREQUENCIES[0] /= 2**0.5
_LOW_FREQUENCIES = _LOW_FREQUENCIES.astype(np.float32)
# Bits in which the hashes of an image and its copy differ, at the most.
MAX_DISTANCE = 20
# Of a mirrored copy. Mirroring turns the sign of the odd horizontal frequencies, every second bit.
# That is exact but for coefficients between 0 and the median: of 200 photographs, mirrored and
# encoded again, at most 36 bits differ, and at least 96 of different ones.
MAX_MIRRORED_DISTANCE = 40
# Near-copies stay together where every class is left so many groups, or all that it has: one to
# measure on, and two to choose a head by. And where none of them has more of a class than this.
MIN_GROUPS, MAX_SHARE = 3, 3 / 4
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 256 bits that hardly change when an image is resized or encoded again.

    The 16 by 16 lowest frequencies of the discrete cosine transform of a 64 by 64 grey thumbnail;
    a bit says whether its coefficient is above their median. After the DCT hash of C. Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), which has 64 bits.
    An image of hardly any contrast (a standard deviation of the thumbnail below 1 grey level) has
    the hash 0, which `near_copies` pairs with nothing.

    Parameters
    ----------
    pixels : uint8 array of shape (h, w, 3)
        As `prepare` gives them: hashes of different crops do not compare.

    Returns
    -------
    uint8 array of shape (32,)
    """
    return hash_of_thumbnail(scaled_to(pixels, (64, 64), "bilinear") @ _LUMA)


def hash_of_thumbnail(thumbnail: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the perceptual hash, uint8 array of shape (32,), of a grey (64, 64) thumbnail."""
    if thumbnail.std() < 1:
        return np.zeros(32, dtype=np.uint8)
    low = _LOW_FREQUENCIES @ thumbnail @ _LOW_FREQUENCIES.T
    # the median, as numpy takes it, in a third of the time
    below, above = np.sort(low, axis=None)[127:129]
    return np.packbits(low > (below + above) / 2)


def near_copies(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return which images of two sets are the same but for size, encoding and mirroring.

    Two hashes are at most MAX_DISTANCE bits apart, or MAX_MIRRORED_DISTANCE where every second bit
    of one is turned. Measured at 224 pixels, cut from 256. Of 200 photographs (470 by
    390 pixels) encoded again as JPEG of quality 75, 60 or 50, halved, or both, every copy was
    found (at most 14 bits apart; mirrored, 36), and no different one (at least 92 apart). Of all
    24,000 CIFAR-10 images of four classes, 20 pairs were reported, and 18 mirrored ones; each
    shows one image twice. Images as small as those (32 by 32) lose much when encoded again: all
    copies are found at quality 75, 78 % at 50, and hardly any when halved. Handwritten digits
    (1,797 of 8 by 8 pixels): none of 1.6 million pairs; the closest were 22 bits apart, of one
    digit each. Rotated and cropped images are not found (of the latter, ``extract.leaks`` finds
    some). 40,000 against 160,000 takes about a minute of one core.

    Parameters
    ----------
    a : uint8 array of shape (n, 32)
    b : uint8 array of shape (m, 32)
        Perceptual hashes, made with one preprocessing. Of a set compared with itself, every row
        is a copy of itself, and every pair comes twice.

    Returns
    -------
    int array of shape (k, 2)
        Rows of `a` and of `b`, sorted.
    """
    found = [np.empty((0, 2), dtype=np.intp)]
    for rows_a, rows_b, same in _compared(a, b):
        i, j = np.nonzero(same)
        found.append(np.stack([rows_a[i], rows_b[j]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def are_mirrored(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say of n pairs of near-copies, hashes of shape (n, 32) each, which are mirror images."""
    distances: NDArray[np.intp] = np.bitwise_count(a ^ b).sum(axis=1, dtype=np.intp)
    return distances > MAX_DISTANCE


def first_near_copies(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return for every image of a set the first of another set that is a near-copy of it.

    Where images are much alike, as the frames of a film, there are more pairs than memory holds.

    Parameters
    ----------
    a, b : uint8 arrays of shape (n, 32) and (m, 32), as in `near_copies`

    Returns
    -------
    int array of shape (n,)
        Rows of `b`, and -1 where there is none.
    """
    first = np.full(len(a), -1, dtype=np.intp)
    for rows_a, rows_b, same in _compared(a, b):
        new = same.any(axis=1) & (first[rows_a] < 0)
        first[rows_a[new]] = rows_b[same[new].argmax(axis=1)]
    return first


def near_copy_groups(hashes: NDArray[np.uint8], groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Join groups of images that a chain of near-copies connects.

    Parameters
    ----------
    hashes : uint8 array of shape (n, 32)
    groups : int array of shape (n,)

    Returns
    -------
    int array of shape (n,)
        Numbered from 0, in the order of the least number that was joined.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    joined = np.unique(groups, return_inverse=True)[1]
    with threadpool_limits(1):  # small products, in which threads wait for each other, and busily
        for rows_a, rows_b, same in _compared(hashes, hashes, of_one_set=True):
            # of those that are joined already, there may be more pairs than memory holds
            i, j = np.nonzero(same & (joined[rows_a][:, None] != joined[rows_b]))
            if len(i):
                count = joined.max() + 1
                pairs = (np.ones(len(i), dtype=bool), (joined[rows_a[i]], joined[rows_b[j]]))
                graph = coo_array(pairs, shape=(count, count))
                joined = connected_components(graph, directed=False)[1][joined]
    return joined


@dataclass(frozen=True)
class NearCopies:
    """Which images of a set shall stay together, since they are near-copies.

    Attributes
    ----------
    groups : by path, the group of each image that is to stay with others, which it or a chain of
        near-copies nearly is
    images : how many images have a near-copy that stands in another group, or alone
    apart : classes whose near-copies are not kept together: too few groups would be left of them
    """

    groups: Mapping[str, str] = field(default_factory=dict)
    images: int = 0
    apart: tuple[str, ...] = ()

    @classmethod
    def among(cls, rows: Sequence[ImageRow], hashes: NDArray[np.uint8]) -> "NearCopies":
        """Find them among n labelled rows by their perceptual hashes, of shape (n, 32)."""
        names, unit = np.unique([unit_of(row) for row in rows], return_inverse=True)
        joined = near_copy_groups(hashes, unit)
        units_in = _distinct(joined, unit)
        several = units_in[joined] > 1
        if not several.any():
            return cls()
        classes, label = np.unique([str(row.label) for row in rows], return_inverse=True)
        pairs, sizes = np.unique(np.stack([label, joined]), axis=1, return_counts=True)
        of_class, group = pairs
        torn = np.bincount(of_class) < np.minimum(_distinct(label, unit), MIN_GROUPS)
        large = (units_in[group] > 1) & (sizes > MAX_SHARE * np.bincount(label)[of_class])
        torn[of_class[large]] = True
        kept = several & ~np.isin(joined, group[torn[of_class]])
        # named by the first of its units, so that other images change the name as little as can be
        first = np.full(len(units_in), len(names))
        np.minimum.at(first, joined, unit)
        return cls(
            {
                rows[i].path: f"near-copies of {names[first[joined[i]]]}"
                for i in np.flatnonzero(kept).tolist()
            },
            int(several.sum()),
            tuple(classes[np.unique(label[several & ~kept])].tolist()),
        )

    def joined(self, rows: Sequence[ImageRow]) -> list[ImageRow]:
        """Rows with these groups in the place of their own."""
        return [
            replace(row, group=self.groups[row.path]) if row.path in self.groups else row
            for row in rows
        ]


def _distinct(of: NDArray[np.intp], what: NDArray[np.intp]) -> NDArray[np.intp]:
    """Count the distinct values among the rows of each number: int array of shape (max + 1,)."""
    return np.bincount(np.unique(np.stack([of, what]), axis=1)[0])


def _compared(
    a: NDArray[np.uint8], b: NDArray[np.uint8], *, of_one_set: bool = False
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]]:
    """Yield rows of two sets, some at a time, and which pairs of them are copies, where any is.

    What is compared with the same row of `a` comes in the order of `b`. Of one set, given twice,
    most pairs come once.
    """
    rows_a, rows_b = np.flatnonzero(a.any(axis=1)), np.flatnonzero(b.any(axis=1))
    # the product of two rows of +1 and -1 is 256 less twice the bits that differ
    least, least_mirrored = 256 - 2 * MAX_DISTANCE, 256 - 2 * MAX_MIRRORED_DISTANCE
    for chunk_b in _chunks(rows_b, 2048):
        even_b, odd_b = _signs(b[chunk_b])
        for chunk_a in _chunks(rows_a, 512):
            if of_one_set and chunk_a[0] > chunk_b[-1]:
                break
            even_a, odd_a = _signs(a[chunk_a])
            even, odd = even_a @ even_b.T, odd_a @ odd_b.T
            same = even + odd >= least
            even -= odd
            same |= even >= least_mirrored
            if same.any():
                yield chunk_a, chunk_b, same


def _chunks(rows: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _signs(hashes: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bits as +1 and -1: those of the even and of the odd horizontal frequencies."""
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    return signs[:, ::2].copy(), signs[:, 1::2].copy()
