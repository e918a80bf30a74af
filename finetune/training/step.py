"""The loss of a training step: what is differentiated, on however many processes."""

from __future__ import annotations

import torch
from torch import nn

from finetune.network import TrainedPart
from finetune.training.auxiliary import Auxiliaries


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
            features = self.part.features(prepared)
        logits = self.part.classify(features)
        loss: torch.Tensor = self.loss(logits.float(), targets)
        if self.auxiliaries is not None and not classifier_alone:
            loss = loss + self.auxiliaries.losses(targets, self.loss)
        return loss, logits.detach()
