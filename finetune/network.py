"""The network in two views: whole, from pixels to logits, and only the part that trains."""

import torch
from torch import nn

from extract.engines import normalise
from extract.images import Preprocessing


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
    preprocessing : given where inputs are pixels (uint8); None for activations
    dropout : on the features while training
    trunk : the frozen blocks, where they are run anew for every batch; they are no part of this
        module's parameters, modes and state, and always in inference mode
    """

    def __init__(
        self,
        tail: nn.Module,
        classifier: nn.Linear,
        preprocessing: Preprocessing | None,
        dropout: float,
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.tail = tail
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier
        self._preprocessing = preprocessing
        self._trunk = () if trunk is None else (trunk.eval(),)  # in a tuple: not to be registered

    @property
    def trainable_parameters(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn activations or pixels into the tail's float32 inputs, without gradients.

        Parameters
        ----------
        inputs : float16 activations (n, …) or uint8 pixels (n, size, size, 3)
        """
        with torch.no_grad():
            if self._preprocessing is None:
                inputs = inputs.float()
            else:
                inputs = normalise(inputs, self._preprocessing)
            if inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            for trunk in self._trunk:
                inputs = trunk.to(inputs.device)(inputs)
        return inputs

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map activations (n, …) or uint8 pixels (n, size, size, 3) to logits (n, classes)."""
        logits: torch.Tensor = self.classifier(self.dropout(self.tail(self.prepare(inputs))))
        return logits
