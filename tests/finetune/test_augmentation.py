"""Augmentation: a seed is an image, Keras's recipe is as scipy computes it, mixes tell shares."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_images

from finetune.data import AUGMENTATIONS, MIXES, mixed, write_contact_sheet
from finetune.data.augmentation import augmented, seed_of

pytestmark = pytest.mark.filterwarnings("error")
SIZE = 48
CHANGING = [name for name in AUGMENTATIONS if name != "none"]


def photographs(size: int = SIZE, count: int = 8) -> torch.Tensor:
    """Squares cut from scikit-learn's two photographs."""
    squares = []
    for number in range(count):
        whole = Image.fromarray(load_sample_images().images[number % 2])
        left = 60 * (number // 2)
        squares.append(whole.crop((left, 100, left + 300, 400)).resize((size, size)))
    return torch.from_numpy(np.stack([np.asarray(square) for square in squares]))


PIXELS = photographs()


@pytest.fixture(autouse=True)
def _callers_random_numbers_stay() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("name", CHANGING)
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, len(PIXELS) - 1), max_size=6),
    seeds=st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6),
    moved=st.integers(0, 2**32),
)
def test_a_seed_is_a_image_whatever_the_batch(
    name: str, rows: list[int], seeds: list[int], moved: int
) -> None:
    pixels = PIXELS[rows]
    seeds = seeds[: len(rows)]
    batch = augmented(pixels, name, seeds)
    assert batch.shape == pixels.shape
    assert batch.dtype == torch.uint8
    assert torch.equal(pixels, PIXELS[rows])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(moved)
        alone = [augmented(PIXELS[r : r + 1], name, [s]) for r, s in zip(rows, seeds, strict=True)]
    assert torch.equal(batch, torch.cat([pixels[:0], *alone]))
    assert torch.equal(batch.flip(0), augmented(pixels.flip(0), name, seeds[::-1]))


@pytest.mark.parametrize("name", CHANGING)
def test_other_seeds_give_other_images(name: str) -> None:
    one = PIXELS[:1].expand(64, -1, -1, -1)
    views = augmented(one, name, [seed_of(0, 7, view) for view in range(64)])
    different = len({view.numpy().tobytes() for view in views})
    assert different == {"flip": 2, "course": 64}.get(name, different)
    assert different > 1
    if name == "trivial":  # a seventh leaves the image, some others have few strengths
        assert different > 20


def test_none_is_the_input() -> None:
    assert augmented(PIXELS, "none", range(len(PIXELS))) is PIXELS


def test_flip_gives_the_image_or_its_mirror_image() -> None:
    one = PIXELS[:1].expand(400, -1, -1, -1)
    views = augmented(one, "flip", [seed_of(3, b"key", view) for view in range(400)])
    same = (views == PIXELS[0]).flatten(1).all(1)
    mirrored = (views == PIXELS[0].flip(1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_course_fills_a_white_image_with_white() -> None:
    white = torch.full((200, 32, 32, 3), 255, dtype=torch.uint8)
    assert (augmented(white, "course", range(200)) == 255).all()


@pytest.mark.parametrize("size", [32, 47])
def test_course_is_what_keras_computes(size: int) -> None:
    """Against the scipy function that Keras calls, with matrices built as it builds them."""
    shown = photographs(size)
    ours = augmented(shown, "course", range(len(shown))).numpy()
    most = {"angle": 0.0, "shift": 0.0}
    for seed, image in enumerate(shown.numpy()):
        draws = torch.rand(
            7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        ).numpy()
        angle, down, right, shear, zoom_rows, zoom_columns = draws[:6] * 2 - 1
        angle = np.deg2rad(angle * 40)
        rotation = [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
        shift = [[1, 0, 0.2 * down * size], [0, 1, 0.2 * right * size]]
        shearing = [[1, -math.sin(0.2 * shear), 0], [0, math.cos(0.2 * shear), 0]]
        zoom = [[1 + 0.2 * zoom_rows, 0, 0], [0, 1 + 0.2 * zoom_columns, 0]]
        centre = (size - 1) / 2
        to_centre = [[1, 0, centre], [0, 1, centre]]
        from_centre = [[1, 0, -centre], [0, 1, -centre]]
        matrix = np.eye(3)
        for step in (to_centre, rotation, shift, shearing, zoom, from_centre):
            matrix = matrix @ np.array([*step, [0, 0, 1]])
        theirs = np.stack(
            [
                ndimage.affine_transform(
                    image[..., channel].astype(float),
                    matrix[:2, :2],
                    matrix[:2, 2],
                    order=1,
                    mode="nearest",
                )
                for channel in range(3)
            ],
            axis=-1,
        )
        if draws[6] < 0.5:
            theirs = theirs[:, ::-1]
        assert np.abs(ours[seed] - theirs).max() < 0.51
        most = {
            "angle": max(most["angle"], abs(angle)),
            "shift": max(most["shift"], abs(down), abs(right)),
        }
    assert most["angle"] > 0.3
    assert most["shift"] > 0.5


def test_seeds_are_spread_over_32_bits() -> None:
    seeds = {
        seed_of(seed, key, view) & 0xFFFFFFFF
        for seed in range(20)
        for key in [*range(20), *(bytes([number]) * 32 for number in range(20))]
        for view in range(20)
    }
    assert len(seeds) > 20 * 40 * 20 - 3  # two of 16,000 hashes meet once in 30 such sets
    assert max(seeds) > 0.99 * 2**32
    assert seed_of(0, b"key", 3) == seed_of(0, b"key", 3) < 2**63
    # in every process, and for runs that an older fx began
    assert seed_of(5, b"key", 2) == 1192231840760558322


@pytest.mark.parametrize("mix", MIXES)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), classes=st.integers(1, 5), seed=st.integers(0, 2**64 - 1))
def test_targets_are_shares_of_each_row_and_the_row_before(
    mix: str, n: int, classes: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 5, 9, 9, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    kept = inputs.clone()
    result, targets = mixed(inputs, labels, classes, mix, seed)
    assert torch.equal(inputs, kept)
    assert result.shape == inputs.shape
    assert targets.shape == (n, classes)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    again = mixed(inputs, labels, classes, mix, seed)
    assert torch.equal(result, again[0])
    assert torch.equal(targets, again[1])

    # the share, told by a batch of as many rows whose classes all differ
    own = torch.arange(n)
    share = 1.0 if n == 1 else mixed(inputs, own, n, mix, seed)[1][0, 0].item()
    before = inputs.roll(1, 0)
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    expected = share * one_hot + (1 - share) * one_hot.roll(1, 0)
    torch.testing.assert_close(targets, expected)
    if mix == "mixup":
        torch.testing.assert_close(result, share * inputs + (1 - share) * before)
        return
    pasted = (result != inputs).any(1)
    if n > 1:
        rows, columns = pasted[0].any(1).nonzero(), pasted[0].any(0).nonzero()
        box = torch.zeros(9, 9, dtype=torch.bool)
        if len(rows):
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        assert (pasted == box).all()
        assert torch.equal(result, torch.where(box, before, inputs))
        assert share == pytest.approx(1 - box.float().mean().item())


@pytest.mark.parametrize("mix", MIXES)
def test_mixes_differ_from_batch_to_batch(mix: str) -> None:
    inputs, labels = PIXELS[:4].permute(0, 3, 1, 2).float(), torch.arange(4)
    shares = {mixed(inputs, labels, 4, mix, seed)[1][0, 0].item() for seed in range(40)}
    assert len(shares) > 20
    assert max(shares) - min(shares) > 0.5


def test_mixup_mixes_feature_vectors() -> None:
    features = torch.arange(12.0).reshape(4, 3)
    result, targets = mixed(features, torch.arange(4), 4, "mixup", 1)
    share = targets[1, 1]
    assert 0 < share < 1
    torch.testing.assert_close(result, share * features + (1 - share) * features.roll(1, 0))


@pytest.mark.parametrize(("size", "tile"), [(40, 40), (160, 128)])
def test_a_contact_sheet_shows_images_and_views(tmp_path: Path, size: int, tile: int) -> None:
    pixels = photographs(size, 10)
    np.save(tmp_path / "p.npy", pixels.numpy())
    stored = np.load(tmp_path / "p.npy", mmap_mode="r")
    file = tmp_path / "sheet.png"
    write_contact_sheet(file, stored, "flip", 0, views=5)
    sheet = Image.open(file)
    assert (sheet.format, sheet.mode) == ("PNG", "RGB")
    assert sheet.size == (6 * (tile + 2) - 2, 8 * (tile + 2) - 2)  # 8 of the 10 images
    shown = np.asarray(sheet)
    first = Image.fromarray(pixels[1].numpy()).resize((tile, tile))
    assert (shown[tile + 2 : 2 * tile + 2, :tile] == np.asarray(first)).all()
    assert (shown[tile : tile + 2] == 255).all()
    assert (shown[:, tile : tile + 2] == 255).all()
    written = file.read_bytes()
    write_contact_sheet(file, stored, "flip", 0, views=5)
    assert file.read_bytes() == written
    write_contact_sheet(file, stored, "flip", 1, views=5)
    assert file.read_bytes() != written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.npy", "sheet.png"]
