"""One step, on however many processes and micro-batches; and predictions, always in fp32.

A step depends on its rows, its seed and the weights alone: it can be taken again.
"""

import contextlib
from collections.abc import Mapping

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from extract.engines import without_tf32
from extract.errors import FxError
from finetune.data import Activations, mixed
from finetune.network import TrainedPart
from finetune.settings import FinetuneSettings
from finetune.training.auxiliary import Auxiliaries
from finetune.training.cpu_layers import quicker_forwards, replaced
from finetune.training.optimiser import make_optimiser, set_rates
from finetune.training.processes import gather_rows

Positions = NDArray[np.int64]
NORMALISATIONS = (nn.modules.batchnorm._BatchNorm,)
MAX_GRADIENT_NORM = 1.0  # of all gradients together
PREDICTION_BATCH = 64


class Step(nn.Module):
    """The trained part and its loss in one module, which accelerate wraps; the part stays bare.

    Parameters
    ----------
    part : what trains
    label_smoothing : share of a label that is spread over all classes
    auxiliaries : classifiers on inner layers, whose weighted losses are added while training
    class_weights : float32 tensor of shape (classes,), what a row of each counts, if not 1
    """

    def __init__(
        self,
        part: TrainedPart,
        label_smoothing: float,
        auxiliaries: Auxiliaries | None = None,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.part = part
        self.auxiliaries = auxiliaries
        self.loss = nn.CrossEntropyLoss(
            class_weights, reduction="sum", label_smoothing=label_smoothing
        )

    def forward(
        self, prepared: torch.Tensor, targets: torch.Tensor, classifier_alone: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add up the losses of some rows.

        Parameters
        ----------
        prepared : float32 tensor (n, …), as ``TrainedPart.prepare`` gives it
        targets : int64 class numbers (n,), or float shares of classes (n, classes)
        classifier_alone : whether the blocks are not to be differentiated

        Returns
        -------
        the sum of the losses, a scalar, and the logits (n, classes)
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not classifier_alone):
            features = self.part.tail(prepared)
        logits = self.part.classifier(self.part.dropout(features))
        loss: torch.Tensor = self.loss(logits.float(), targets)
        if self.auxiliaries is not None and not classifier_alone:
            loss = loss + self.auxiliaries.losses(targets, self.loss)
        return loss, logits.detach()


class Trainer:
    """The trained part with its optimiser, placed and wrapped.

    Parameters
    ----------
    part : trained in place
    activations : inputs of ``part``
    settings : how
    accelerator : device, precision and processes
    depth : blocks between a parameter and the classifier
    auxiliaries : classifiers on inner layers that train along, if any
    class_weights : float32 tensor of shape (classes,), what a row of each counts, if not 1

    Attributes
    ----------
    step_module : Step, what trains, unwrapped
    micro_batch : images in memory at once; halved where memory runs out
    notes : what was not as asked for
    """

    def __init__(
        self,
        part: TrainedPart,
        activations: Activations,
        settings: FinetuneSettings,
        accelerator: Accelerator,
        depth: Mapping[nn.Parameter, int],
        auxiliaries: Auxiliaries | None = None,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self.part = part
        self.activations = activations
        self.settings = settings
        self.accelerator = accelerator
        self.step_module = Step(part, settings.label_smoothing, auxiliaries, class_weights)
        self.step_module.to(accelerator.device).to(memory_format=torch.channels_last)
        self.optimiser: torch.optim.Optimizer
        self.model, self.optimiser = accelerator.prepare(
            self.step_module, make_optimiser(self.step_module, depth, settings)
        )
        on_cpu = accelerator.device.type == "cpu" and settings.precision == "bf16"
        self._quicker = quicker_forwards(part) if on_cpu else {}
        self.micro_batch = settings.micro_batch
        self.notes: list[str] = []

    def step(
        self,
        positions: Positions,
        labels: NDArray[np.int64],
        *,
        rate: float,
        epoch: int,
        seed: int,
        classifier_alone: bool = False,
    ) -> tuple[float, int]:
        """Train on some rows at a learning rate.

        Where memory runs out, the micro-batch is halved and the step taken again.

        Parameters
        ----------
        positions : int64 array of shape (n,), of all processes together
        labels : int64 array of shape (n,)
        rate : learning rate
        epoch : decides the views of the images
        seed : of dropout and mixing
        classifier_alone : whether the blocks stay as they are

        Returns
        -------
        the mean loss before the step, and how many rows were classified correctly
        """
        set_rates(self.optimiser, rate)
        while True:
            torch.manual_seed(seed + self.accelerator.process_index)
            try:
                with without_tf32():
                    return self._take_step(positions, labels, epoch, seed, classifier_alone)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise FxError(
                    "batch norm cannot train on one image at a time where a layer sees one pixel "
                    "of it; give a larger `batch_size`, `micro_batch` or `size`, or "
                    "`batch_norm=inference`"
                ) from error
            except RuntimeError as error:
                images = min(self.micro_batch or len(positions), len(positions))
                if not should_reduce_batch_size(error):
                    raise
                if images == 1 or self.accelerator.num_processes > 1:
                    raise FxError(
                        f"out of memory with {images} images at once; give a smaller `batch_size` "
                        "or `size`, or unfreeze fewer blocks"
                    ) from error
                self.micro_batch = images // 2
                self.notes.append(
                    f"out of memory with {images} images at once: a step of {len(positions)} is "
                    f"taken {self.micro_batch} at a time"
                )
            self.model.zero_grad()
            clear_device_cache(garbage_collection=True)

    def _take_step(
        self,
        positions: Positions,
        labels: NDArray[np.int64],
        epoch: int,
        seed: int,
        classifier_alone: bool,
    ) -> tuple[float, int]:
        accelerator, device = self.accelerator, self.accelerator.device
        processes, count = accelerator.num_processes, len(positions)
        mine = np.arange(count)[accelerator.process_index :: processes]
        size = self.micro_batch or max(1, len(mine))
        micro = [mine[at : at + size] for at in range(0, max(1, len(mine)), size)]
        if size > 1 and len(micro) > 1 and len(micro[-1]) == 1:
            # batch norm cannot train on one image
            micro[-2:] = [np.concatenate(micro[-2:])]
        self.model.zero_grad()
        sums = torch.zeros(2, device=device)
        for number, some in enumerate(micro):
            inputs = self.part.prepare(self.activations.draw(positions[some], epoch).to(device))
            truth = torch.from_numpy(labels[some]).to(device)
            targets = truth
            if self.settings.mix:
                classes = self.part.classifier.out_features
                inputs, targets = mixed(inputs, truth, classes, self.settings.mix, seed + number)
            last = number == len(micro) - 1
            # gradients are exchanged once a step
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with replaced(self._quicker):
                    loss, logits = self.model(inputs, targets, classifier_alone)
                # processes' gradients are averaged: the mean is over the rows of all
                accelerator.backward(loss * (processes / count))
            sums += torch.stack([loss.detach(), (logits.argmax(1) == truth).sum()])
        accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        self.optimiser.step()
        total, correct = accelerator.reduce(sums, "sum").tolist()
        return total / count, round(correct)

    def training_mode(self) -> None:
        """Put dropout into training; batch norm where the settings say so."""
        set_training_mode(self.step_module, self.settings)

    def features(self, positions: Positions, part: TrainedPart | None = None) -> torch.Tensor:
        """Compute features in inference mode and fp32: tensor (len(positions), d) on the CPU.

        Of `part`, if it is given, in the place of the trainer's own.
        """
        part, accelerator = (part or self.part).eval(), self.accelerator
        mine = positions[accelerator.process_index :: accelerator.num_processes]
        parts = [torch.zeros(0, part.classifier.in_features)]
        with torch.inference_mode(), without_tf32():
            for at in range(0, len(mine), PREDICTION_BATCH):
                inputs = self.activations.take(mine[at : at + PREDICTION_BATCH])
                prepared = part.prepare(inputs.to(accelerator.device))
                parts.append(part.tail(prepared).float().cpu())
        return gather_rows(accelerator, torch.cat(parts), len(positions))

    def logits(self, positions: Positions, part: TrainedPart | None = None) -> torch.Tensor:
        """Compute logits as `features` does features: tensor (len(positions), k) on the CPU."""
        return self.classified(self.features(positions, part), part)

    def classified(self, features: torch.Tensor, part: TrainedPart | None = None) -> torch.Tensor:
        """Turn features (n, d) into logits (n, k), on the CPU."""
        classifier, device = (part or self.part).classifier, self.accelerator.device
        with torch.inference_mode(), without_tf32():
            logits: torch.Tensor = classifier(features.to(device)).cpu()
        return logits


def weights_of_classes(labels: NDArray[np.int64]) -> torch.Tensor:
    """Weigh classes so that all weigh the same, and rows 1 on average: float32 (classes,)."""
    weights = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    return torch.from_numpy(weights.astype(np.float32))


def set_training_mode(module: nn.Module, settings: FinetuneSettings) -> None:
    """Put dropout into training; batch norm from scratch only, or where it is asked for.

    With the small batches and few images of fine-tuning, batch statistics are noise, and running
    ones would drift from those that the pretrained weights fit.
    """
    module.train()
    if not settings.from_scratch and settings.batch_norm == "inference":
        for layer in module.modules():
            if isinstance(layer, NORMALISATIONS):
                layer.eval()
