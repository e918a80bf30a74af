"""How long training takes on this machine, by a few steps on images of noise."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.engines import make_engine
from finetune.data import Activations, Views
from finetune.network import TrainedPart
from finetune.settings import FinetuneSettings
from finetune.split import SplitNetwork
from finetune.training import Trainer, make_accelerator

TRIED_SECONDS = 1.0  # after which no step of more images is tried


@dataclass(frozen=True)
class Timing:
    """What one image costs a fine-tuning.

    Attributes
    ----------
    training : seconds an image takes in a step, forward and back
    predicting : seconds an image takes in the trained part, forward
    cached : bytes an image takes in the cache: activations, or pixels where nothing is frozen
    trainable_parameters : how many numbers train
    """

    training: float
    predicting: float
    cached: int
    trainable_parameters: int


def time_training(
    backbone: Backbone, classes: int, settings: FinetuneSettings, device: torch.device
) -> Timing:
    """Train for a few steps and throw the result away; the backbone's module is changed.

    Steps are of more and more images, up to a step's, so that a large network does not take long on
    a slow machine: what an image takes hardly depends on how many there are.

    Parameters are those of ``finetune``.
    """
    images = settings.step_size
    side = backbone.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    split = SplitNetwork.of(backbone, classes, settings)
    array: NDArray[np.generic] = pixels
    if split.trunk is not None:
        engine = make_engine(
            split.trunk,
            backbone.preprocessing,
            name="torch",
            device=device.type,
            precision="fp32",
            batch_size=1,
        )
        array = next(engine.run(iter([pixels]))).astype(np.float16)
    part = TrainedPart(
        split.tail,
        split.classifier,
        None if split.trunk is not None else backbone.preprocessing,
        settings.dropout,
    )
    keys = [number.to_bytes(2, "big") for number in range(images)]
    array = np.repeat(array, images, axis=0)
    activations = Activations(array, keys, [1] * images, Views("none", 0, 0))
    trainer = Trainer(part, activations, settings, make_accelerator(device, settings), split.depth)
    positions, labels = np.arange(images), np.arange(images) % classes
    trainer.training_mode()
    counts = [2**power for power in range(1, 16) if 2**power < images]
    # all of them twice: the first time a GPU prepares what is to run
    for step, count in enumerate([*counts, images, images]):
        begun = time.perf_counter()
        if step <= 1:
            # what the first step takes says nothing
            first = begun
        trainer.step(positions[:count], labels[:count], rate=1e-6, epoch=1, seed=step)
        trained = time.perf_counter()
        if step and trained - first > TRIED_SECONDS:
            break
    trainer.logits(positions[:count])
    done = time.perf_counter()
    return Timing(
        (trained - begun) / count,
        (done - trained) / count,
        array[0].nbytes,
        part.trainable_parameters,
    )
