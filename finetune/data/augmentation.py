"""Augmentation: each image is drawn by a seed of its own, whatever batch, order or run it is in."""

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import grid_sample

from extract.files import write_whole

# torchvision.transforms.v2 is imported where it is used: it imports torch._dynamo, more than a
# second. In training that costs nothing, for the optimiser has done so; in fx --help it would.

AUGMENTATIONS = ("none", "flip", "course", "trivial")
MIXES = ("mixup", "cutmix")
# of the Beta distributions, for ImageNet: Zhang et al. 2018 (0.1 to 0.4), Yun et al. 2019
MIXUP_ALPHA, CUTMIX_ALPHA = 0.2, 1.0
# black corners would be shapes that no photograph has
MID_GREY = 128
# of a contact sheet; the last two in pixels
ROWS, TILE, GUTTER = 8, 128, 2


def augmented(pixels: torch.Tensor, name: str, seeds: Sequence[int]) -> torch.Tensor:
    """Augment images, each by its own seed; the caller's random numbers are not moved.

    Bitwise the same for one image and seed, with the same number of threads.

    Parameters
    ----------
    pixels : uint8 tensor of shape (n, size, size, 3)
    name : one of ``AUGMENTATIONS``: ``flip``, about half mirrored; ``course``, the
        ``ImageDataGenerator`` of many courses with Keras; ``trivial``, TrivialAugmentWide
        (Müller and Hutter 2021); or ``none``
    seeds : n numbers from 0 to 2**64 - 1; ``seed_of`` makes them

    Returns
    -------
    uint8 tensor of shape (n, size, size, 3); for ``none`` it is ``pixels``
    """
    if name == "none":
        return pixels
    if name == "flip":
        chosen = torch.tensor([is_mirrored(seed) for seed in seeds], dtype=torch.bool)
        return torch.where(chosen[:, None, None, None], pixels.flip(2), pixels)
    augment = _keras_affine
    if name == "trivial":
        from torchvision.transforms import v2

        augment = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR, fill=MID_GREY)
    result = torch.empty_like(pixels)
    with torch.random.fork_rng(devices=[]):
        # one by one: a batch of affine maps takes a core twice as long, being out of its cache
        for place, pixels_of_one, seed in zip(result, pixels, seeds, strict=True):
            # not torch.manual_seed, which seeds the accelerators too
            torch.default_generator.manual_seed(seed)
            place.copy_(augment(pixels_of_one.permute(2, 0, 1)).permute(1, 2, 0))
    return result


def is_mirrored(seed: int) -> bool:
    """Whether ``flip`` mirrors an image of this seed."""
    return bool(seed & 1)


def mirrored(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Exchange left and right of images, uint8 array of shape (n, size, size, 3)."""
    return np.ascontiguousarray(pixels[:, :, ::-1])


def seed_of(seed: int, key: bytes | int, view: int) -> int:
    """Combine a run's seed, an image and the number of its view into one seed, below 2**63.

    By a hash: torch looks at 32 bits of a seed alone, in which sums and products would repeat.

    Parameters
    ----------
    seed : of the run
    key : the image: the SHA-256 of its file, or a number
    view : which of its augmented images: the epoch
    """
    image = key if isinstance(key, bytes) else str(key).encode()
    digest = hashlib.blake2b(f"{seed} {view} ".encode() + image, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def mixed(
    inputs: torch.Tensor, labels: torch.Tensor, classes: int, mix: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix every row of a batch with the row before it; the caller's random numbers are not moved.

    Parameters
    ----------
    inputs : float tensor of shape (n, c, h, w), or for MixUp (n, d)
    labels : int64 tensor of shape (n,), class numbers
    classes : how many there are
    mix : one of ``MIXES``: ``mixup`` averages, ``cutmix`` pastes a box
    seed : from 0 to 2**64 - 1

    Returns
    -------
    a new tensor like ``inputs``, and float32 targets of shape (n, classes), whose rows sum to 1
    """
    from torchvision.transforms import v2

    kind, alpha = (v2.CutMix, CUTMIX_ALPHA) if mix == "cutmix" else (v2.MixUp, MIXUP_ALPHA)
    maps = inputs if inputs.dim() == 4 else inputs[:, :, None, None]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        result, targets = kind(alpha=alpha, num_classes=classes)(maps, labels)
    return result.reshape(inputs.shape), targets


def write_contact_sheet(
    file: Path, pixels: NDArray[np.uint8], name: str, seed: int, views: int = 8
) -> None:
    """Write a PNG that shows an augmentation: a row an image, itself first, then its views.

    Parameters
    ----------
    file : replaced if it is there
    pixels : uint8 array of shape (m, size, size, 3), m at least 1; the first 8 are shown
    name : one of ``AUGMENTATIONS``
    seed : of the run
    views : augmented images of each image
    """
    shown = torch.from_numpy(np.array(pixels[:ROWS]))  # a copy: torch warns of read-only files
    columns = [shown]
    for view in range(1, views + 1):
        seeds = [seed_of(seed, row, view) for row in range(len(shown))]
        columns.append(augmented(shown, name, seeds))
    tile = min(TILE, shown.shape[1])
    step = tile + GUTTER
    sheet = Image.new("RGB", (len(columns) * step - GUTTER, len(shown) * step - GUTTER), "white")
    for x, column in enumerate(columns):
        for y, pixels_of_one in enumerate(column.numpy()):
            sheet.paste(Image.fromarray(pixels_of_one).resize((tile, tile)), (x * step, y * step))
    encoded = io.BytesIO()
    sheet.save(encoded, format="PNG")
    write_whole(file, encoded.getvalue())


def _keras_affine(image: torch.Tensor) -> torch.Tensor:
    """Keras's ``ImageDataGenerator`` with the numbers of courses, on one image (3, size, size).

    ``rotation_range=40, width_shift_range=0.2, height_shift_range=0.2, shear_range=0.2,
    zoom_range=0.2, horizontal_flip=True``: its matrices in its order, from places in the result to
    places in the image, and outside the nearest pixel. Shear is in radians, as when the recipe
    was written. torchvision's RandomAffine fills with one colour only; padding before it and
    cropping after it took 20 times as long as this.
    """
    draws = torch.rand(7, dtype=torch.float64).mul(2).sub(1).tolist()
    turn, down, right, slant, tall, wide, side = draws
    angle, shear = math.radians(40) * turn, 0.2 * slant
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shearing = np.array([[1, -math.sin(shear)], [0, math.cos(shear)]])
    zoom = np.array([1 + 0.2 * tall, (1 + 0.2 * wide) * (-1 if side < 0 else 1)])
    (a, b), (c, d) = (rotation @ shearing * zoom).tolist()
    # grid_sample counts from -1 to 1, so that a side is 2 long
    row, column = (rotation @ np.array([0.4 * down, 0.4 * right])).tolist()
    edge = 1 - 1 / image.shape[-1]
    line = torch.linspace(-edge, edge, image.shape[-1], device=image.device)
    rows, columns = a * line[:, None] + b * line + row, c * line[:, None] + d * line + column
    grid = torch.stack([columns, rows]).permute(1, 2, 0)[None]
    result = grid_sample(image[None].float(), grid, padding_mode="border", align_corners=False)
    return result[0].round_().to(torch.uint8)
