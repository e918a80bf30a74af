"""Perceptual hashes: copies are found, mirrored or not, and different images are none."""

import tarfile
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from test_decode import BICUBIC, BILINEAR, SHARED, needs_shared, photographs, saved, scene

from extract.images import (
    ImageRow,
    NearCopies,
    Preprocessing,
    are_mirrored,
    decode,
    first_near_copies,
    group_numbers,
    near_copies,
    near_copy_groups,
    read_pixels,
)
from extract.images.crops import prepare
from extract.images.near_duplicates import perceptual_hash
from heads.fitting import make_folds


@needs_shared
@pytest.mark.parametrize("preprocessing", [BICUBIC, BILINEAR])
def test_copies_of_photographs_are_found_and_nothing_else(preprocessing: Preprocessing) -> None:
    images = [decode(path.read_bytes()) for path in photographs()]
    originals = np.stack([perceptual_hash(prepare(image, preprocessing)[0]) for image in images])
    copies = []
    for number, image in enumerate(images):
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        copy = (
            saved(image, "JPEG", quality=50),
            saved(image, "JPEG", quality=75),
            saved(half, "JPEG", quality=50),
            saved(half, "JPEG", quality=75),
        )[number % 4]
        copies.append(perceptual_hash(read_pixels(copy, preprocessing)[0]))
    pairs = near_copies(originals, np.stack(copies))
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert len(pairs) >= 0.99 * len(images)
    assert not are_mirrored(originals[pairs[:, 0]], np.stack(copies)[pairs[:, 1]]).any()


@needs_shared
@pytest.mark.parametrize("preprocessing", [BICUBIC, BILINEAR])
def test_mirrored_photographs_are_found_and_nothing_else(preprocessing: Preprocessing) -> None:
    images = [decode(path.read_bytes()) for path in photographs()]
    originals = np.stack([perceptual_hash(prepare(image, preprocessing)[0]) for image in images])
    mirrored = [saved(ImageOps.mirror(image), "JPEG", quality=50) for image in images]
    copies = np.stack([perceptual_hash(read_pixels(one, preprocessing)[0]) for one in mirrored])
    pairs = near_copies(originals, copies)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert len(pairs) >= 0.99 * len(images)
    assert are_mirrored(originals[pairs[:, 0]], copies[pairs[:, 1]]).all()
    # a training image and its mirror image are not torn apart
    together = near_copy_groups(np.concatenate([originals, copies]), np.arange(2 * len(images)))
    assert (together[: len(images)] == together[len(images) :]).mean() >= 0.99


@needs_shared
def test_different_small_images_are_no_copies() -> None:
    hashes = []
    with tarfile.open(SHARED / "cifar4.tar.gz") as archive:
        # every class and both splits have their turn; reading all 24,000 would take too long
        for number, member in enumerate(archive):
            if member.isfile() and number % 12 == 0:
                file = archive.extractfile(member)
                assert file is not None
                hashes.append(perceptual_hash(read_pixels(file.read(), BICUBIC.at_size(96))[0]))
    assert len(hashes) == 2_000
    pairs = near_copies(np.stack(hashes), np.stack(hashes))
    assert (pairs[:, 0] < pairs[:, 1]).sum() <= 1


@pytest.mark.parametrize("preprocessing", [BICUBIC.at_size(96), BILINEAR])
def test_handwritten_digits_are_hardly_ever_called_copies(preprocessing: Preprocessing) -> None:
    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    hashes = np.stack(
        [
            perceptual_hash(prepare(Image.fromarray(image).convert("RGB"), preprocessing)[0])
            for image in images
        ]
    )
    pairs = near_copies(hashes, hashes)
    assert (pairs[:, 0] < pairs[:, 1]).sum() <= 2


def test_images_without_contrast_are_copies_of_nothing() -> None:
    flat = np.full((64, 64, 3), 77, dtype=np.uint8)
    flat[::2] += 1
    black = np.zeros((224, 224, 3), dtype=np.uint8)
    hashes = np.stack([perceptual_hash(flat), perceptual_hash(black)])
    assert not hashes.any()
    assert near_copies(hashes, hashes).shape == (0, 2)


def test_a_hash_has_256_bits_and_does_not_mind_the_size_of_the_square() -> None:
    image = scene(400, 300)
    small, large = (
        perceptual_hash(prepare(image, BICUBIC.at_size(size))[0]) for size in (112, 448)
    )
    assert small.shape == (32,)
    assert small.dtype == np.uint8
    assert len(near_copies(small[None], large[None])) == 1
    other = perceptual_hash(prepare(scene(400, 300, seed=1), BICUBIC)[0])
    assert len(near_copies(small[None], other[None])) == 0


@settings(deadline=None)
@given(
    n=st.integers(0, 600),
    m=st.integers(0, 40),
    turned=st.floats(0.02, 0.2),
    seed=st.integers(0, 1000),
    swapped=st.booleans(),
)
def test_near_copies_are_those_within_the_hamming_distance(
    n: int, m: int, turned: float, seed: int, swapped: bool
) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 256, (n, 32), dtype=np.uint8)
    b = rng.integers(0, 256, (m, 32), dtype=np.uint8)
    odd = np.packbits(np.arange(256) % 2)
    for row in range(0, min(n, m), 2):  # some copies, with a few bits turned, and mirrored ones
        b[row] = a[row] ^ np.packbits(rng.random(256) < turned) ^ (odd if row % 4 else 0)
    if swapped:
        a, b = b, a
    pairs = near_copies(a, b)
    assert pairs.shape == (len(pairs), 2)
    assert np.issubdtype(pairs.dtype, np.integer)
    expected = np.empty((0, 2), dtype=int)
    if n and m:
        bits = [np.unpackbits(hashes, axis=1) for hashes in (a, b, b ^ odd)]
        same, mirrored = (np.rint(256 * cdist(bits[0], one, "hamming")) for one in bits[1:])
        expected = np.argwhere((same <= 20) | (mirrored <= 40))
    np.testing.assert_array_equal(pairs, expected)


def test_near_copies_are_found_across_chunks() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (1_300, 32), dtype=np.uint8)
    b = rng.integers(0, 256, (5_000, 32), dtype=np.uint8)
    b[[0, 2_047, 2_048, 4_999]] = a[[1_299, 512, 511, 0]]
    expected = [[0, 4_999], [511, 2_048], [512, 2_047], [1_299, 0]]
    np.testing.assert_array_equal(near_copies(a, b), expected)


def some_alike(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of which a few differ by some bits, and a few are of no contrast."""
    rng = np.random.default_rng(seed)
    originals = rng.integers(0, 256, (1 + (n + m) // 3, 32), dtype=np.uint8)
    drawn = originals[rng.integers(0, len(originals), n + m)]
    drawn = drawn ^ np.packbits(rng.random((n + m, 256)) < 0.03, axis=1)
    drawn[rng.random(n + m) < 0.05] = 0
    return drawn[:n], drawn[n:]


@settings(deadline=None)
@given(n=st.integers(0, 600), m=st.integers(0, 40), seed=st.integers(0, 1000))
def test_the_first_near_copy_of_each_is_the_first_of_its_pairs(n: int, m: int, seed: int) -> None:
    a, b = some_alike(n, m, seed)
    expected = np.full(n, -1)
    for i, j in near_copies(a, b)[::-1]:
        expected[i] = j
    np.testing.assert_array_equal(first_near_copies(a, b), expected)


@settings(deadline=None)
@given(n=st.integers(1, 600), groups=st.integers(1, 400), seed=st.integers(0, 1000))
def test_groups_are_joined_by_chains_of_near_copies(n: int, groups: int, seed: int) -> None:
    hashes, _ = some_alike(n, 0, seed)
    given = np.random.default_rng(seed).integers(0, groups, n)
    pairs = given[near_copies(hashes, hashes)]
    graph = coo_array((np.ones(len(pairs)), pairs.T), shape=(groups, groups))
    expected = connected_components(graph, directed=False)[1][given]
    found = near_copy_groups(hashes, given)
    np.testing.assert_array_equal(found, np.unique(expected, return_inverse=True)[1])


def row(name: str, label: str, group: str | None = None) -> ImageRow:
    return ImageRow(f"{name}.png", name.encode().ljust(32), label, group, "train", "", True, None)


def alike(*sets: int) -> np.ndarray:
    """Hashes, of which so many in turn are those of one image."""
    rng = np.random.default_rng(0)
    one = np.eye(32, dtype=np.uint8)  # one bit of 256
    return np.concatenate(
        [rng.integers(0, 256, 32, np.uint8) ^ one[np.arange(size)] for size in sets]
    )


def test_near_copies_and_given_groups_stay_together() -> None:
    rows = [row("p", "a", "g"), row("q", "a"), row("r", "b"), row("s", "b", "g"), row("t", "b")]
    rows += [row(f"{label}{n}", label) for label in "ab" for n in range(4)]
    found = NearCopies.among(rows, alike(1, 2, *(1 for _ in range(10))))
    joined = group_numbers(found.joined(rows))
    assert joined is not None
    assert {
        tuple(np.flatnonzero(joined == one)) for one in joined if (joined == one).sum() > 1
    } == {
        (0, 3),
        (1, 2),
    }
    assert (found.images, found.apart) == (2, ())
    # by a chain: a given group, and what is a near-copy of one of its members
    found = NearCopies.among(rows[1:], alike(1, 2, *(1 for _ in range(9))))
    assert found.groups.keys() == {"r.png", "s.png"}
    assert not NearCopies.among(rows, alike(*(1 for _ in rows))).groups


@pytest.mark.parametrize(
    ("sets", "kept"),
    [
        ((6,), False),  # one scene
        ((5, 1), False),
        ((4, 1, 1), True),
        ((5, 1, 1), True),
        ((7, 1, 1), False),  # one group with more than three quarters
        ((2, 2, 2), True),
        ((2, 1), False),
        ((1, 1), True),
    ],
)
def test_near_copies_stay_together_where_classes_stay_fittable(
    sets: tuple[int, ...], kept: bool
) -> None:
    rows = [row(f"a{n}", "a") for n in range(sum(sets))]
    others = [row(f"b{n}", "b") for n in range(9)]
    found = NearCopies.among([*rows, *others], alike(*sets, 3, *(1 for _ in range(6))))
    copies = sum(size for size in sets if size > 1)
    assert found.images == copies + 3
    assert len(found.groups) == (copies if kept else 0) + 3
    assert found.apart == (() if kept or not copies else ("a",))
    groups = group_numbers(found.joined([*rows, *others]))
    assert groups is not None
    labels = np.array([0] * len(rows) + [1] * 9)
    if len(rows) > 1:
        # whatever was joined, folds can be made
        splits, _ = make_folds(labels, classes=["a", "b"], folds=5, groups=groups)
        assert all(set(labels[fitting]) == {0, 1} for fitting, _ in splits)


def test_ten_thousand_images_alike_take_the_memory_of_none() -> None:
    # as the frames of a film: a hundred million pairs
    hashes = np.full((10_000, 32), 0b01010101, np.uint8)
    tracemalloc.start()
    try:
        assert not near_copy_groups(hashes, np.arange(10_000)).any()
        assert not first_near_copies(hashes, hashes).any()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e8
