"""The network in two views: whole, from pixels to logits, and only the part that trains."""

from __future__ import annotations

import torch
from torch import nn

from extract import Preprocessing, normalise


class Network(nn.Module):
    """A backbone and its classifier: normalised images (n, 3, s, s) to logits (n, classes)."""

    def __init__(self, backbone: nn.Module, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits."""
        logits: torch.Tensor = self.classifier(self.backbone(images))
        return logits


class TrainedPart(nn.Module):
    """The unfrozen blocks and the classifier.

    Parameters
    ----------
    tail : the blocks that train
    classifier : from features to logits
    preprocessing : given where the tail begins with pixels (uint8); None for activations
    dropout : on the features while training
    """

    def __init__(
        self,
        tail: nn.Module,
        classifier: nn.Linear,
        preprocessing: Preprocessing | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tail = tail
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier
        self._preprocessing = preprocessing

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map activations (n, …) or uint8 pixels (n, size, size, 3) to logits (n, classes)."""
        if self._preprocessing is None:
            inputs = inputs.float()
        else:
            inputs = normalise(inputs, self._preprocessing)
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.classifier(self.dropout(self.tail(inputs)))
        return logits
