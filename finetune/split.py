"""A network cut in two: the frozen part, run once, and what trains, with the files between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from extract.backbones import Backbone, import_compiler
from extract.engines import Engine, make_engine
from extract.files import Place, in_units
from extract.images import MAX_IMAGE_MB, ImageRow, Preprocessing
from finetune.blocks import cut, depths
from finetune.data import Activations, TooLarge, Views, load_activations
from finetune.network import TrainedPart
from finetune.settings import FinetuneSettings

Progress = Callable[[str], Callable[[int, int], None] | None]


@dataclass(frozen=True)
class Resources:
    """Where and with what a fine-tuning runs.

    What of it decides the result, ``finetune.finetuning.identity_of`` says.

    Attributes
    ----------
    device : that trains
    cache : folder for activations at the freezing boundary
    cache_limit : most bytes of them; beyond it the frozen blocks run for every batch. None for as
        many as the disk has room for
    activation_rows : images whose activations the cache shall hold, where it is shared by several
        fine-tunings; by default those of the data
    augmented_rows : those of them of which augmented views are kept, where training augments; by
        default those that train
    engine : that runs the trunk: ``auto``, ``torch`` or ``openvino``
    precision : of the trunk, as engines have it
    batch_size : images in one pass through the trunk; None for what suits the engine
    log_to : ``tensorboard``, ``mlflow`` or None
    max_image_mb : 2**20 bytes that an image may take as 8-bit RGB
    progress : given what is being done, returns a callback for it
    """

    device: torch.device
    cache: Path
    cache_limit: int | None = None
    activation_rows: Sequence[ImageRow] = ()
    augmented_rows: Sequence[ImageRow] = ()
    engine: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    log_to: str | None = None
    max_image_mb: int = MAX_IMAGE_MB
    progress: Progress = lambda _: None

    def engine_of(self, module: nn.Module, preprocessing: Preprocessing, identity: str) -> Engine:
        """Make the engine of a frozen network; what it converts is kept under its identity."""
        return make_engine(
            module,
            preprocessing,
            name=self.engine,
            device=self.device.type,
            precision=self.precision,
            batch_size=self.batch_size,
            identity=identity,
        )

    def keeps_activations(
        self,
        backbone: Backbone,
        trunk: nn.Module | None,
        settings: FinetuneSettings,
        images: int,
        training: int,
    ) -> bool:
        """Decide, before anything is trained, whether the outputs of the frozen blocks are kept.

        Parameters
        ----------
        backbone : gives the size of the images
        trunk : the frozen blocks; None where there are none
        settings : of the training; where flips are still to be decided on, they are counted
        images, training : how many images there are, and how many of them train
        """
        if trunk is None or self.cache_limit is None:
            return trunk is not None
        views = images + settings.kept_views * training
        return bytes_of_activations(backbone, trunk) * views <= self.cache_limit


@dataclass(frozen=True)
class SplitNetwork:
    """A network cut in two, with a classifier on it.

    Attributes
    ----------
    backbone : Backbone
    trunk : the blocks that stay frozen; None where there are none
    tail, classifier : what trains
    depth : blocks between a parameter and the output
    """

    backbone: Backbone
    trunk: nn.Module | None
    tail: nn.Module
    classifier: nn.Linear
    depth: dict[nn.Parameter, int]

    @classmethod
    def of(cls, backbone: Backbone, classes: int, settings: FinetuneSettings) -> "SplitNetwork":
        """Freeze the trunk, make the rest trainable, and put a classifier on it."""
        import_compiler()
        module = backbone.module.eval().requires_grad_(False)
        size, points = backbone.trained_size, backbone.cut_points
        trunk, tail = cut(module, size, settings.unfreeze, points)
        tail.requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            classifier = nn.Linear(backbone.dim, classes)
        return cls(
            backbone,
            None if isinstance(trunk, nn.Identity) else trunk,
            tail,
            classifier,
            depths(module, size, points) if settings.layer_decay < 1 else {},
        )

    def load_inputs(
        self,
        rows: Sequence[ImageRow],
        training: Sequence[ImageRow],
        root: Place,
        settings: FinetuneSettings,
        resources: Resources,
        reserved: int,
        *,
        kept: bool,
    ) -> tuple[Activations, TrainedPart, list[str]]:
        """Run the trunk once, or keep the pixels where its outputs are not kept.

        Parameters
        ----------
        rows : images whose activations are kept
        training : those of them that train, of which augmented views are kept
        root : folder that the rows' paths are relative to
        settings, resources : of the training
        reserved : bytes that are to stay free on the disk
        kept : what ``Resources.keeps_activations`` said

        Returns
        -------
        the activations, what takes them, and notes on what was not as asked for
        """
        preprocessing = self.backbone.preprocessing
        notes: list[str] = []

        def load(trunk: Engine | None) -> Activations:
            about = trunk and [self.backbone.identity, settings.unfreeze, trunk.numerics]
            return load_activations(
                sorted(rows, key=lambda row: row.path),
                root,
                preprocessing=preprocessing,
                trunk=trunk,
                identity={"preprocessing": preprocessing.to_dict(), "trunk": about},
                cache=resources.cache,
                views=Views(settings.augment, settings.kept_views if trunk else 0, settings.seed),
                training={row.key for row in resources.augmented_rows or training},
                limit=resources.cache_limit,
                max_image_mb=resources.max_image_mb,
                reserved=reserved,
                announce=resources.progress,
            )

        if self.trunk is not None and kept:
            identity = f"{self.backbone.identity} below {settings.unfreeze}"
            engine = resources.engine_of(self.trunk, preprocessing, identity)
            try:
                part = TrainedPart(self.tail, self.classifier, None, settings.dropout)
                return load(engine), part, notes
            except TooLarge as error:
                notes.append(f"the frozen blocks run for every batch: {error}")
        elif self.trunk is not None and resources.cache_limit is not None:
            notes.append(
                "the frozen blocks run for every batch: what they give would take more than the "
                f"{in_units(resources.cache_limit)} of `cache_limit`"
            )
        part = TrainedPart(self.tail, self.classifier, preprocessing, settings.dropout, self.trunk)
        return load(None), part, notes


def bytes_of_activations(backbone: Backbone, trunk: nn.Module) -> int:
    """Bytes of what frozen blocks give for one image, as it is kept: in float16."""
    side = backbone.preprocessing.size
    # where an engine may have brought it
    device = next((one.device for one in trunk.parameters()), None)
    with torch.inference_mode():
        found: torch.Tensor = trunk(torch.zeros(1, 3, side, side, device=device))
    return 2 * found.numel()


def trunk_of(backbone: Backbone, unfreeze: int | Literal["all"]) -> nn.Module | None:
    """Cut off the blocks of a backbone that stay frozen; None where there are none."""
    trunk, _ = cut(backbone.module.eval(), backbone.trained_size, unfreeze, backbone.cut_points)
    return None if isinstance(trunk, nn.Identity) else trunk
