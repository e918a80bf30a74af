"""The network that somebody would write by hand: four convolutions, trained from scratch.

It is what a pretrained network is measured against; there are no weights for it.
"""

import torch
from torch import nn

from extract.backbones.families._family import Architecture, Family
from extract.errors import FxError
from extract.images import Preprocessing

WIDTHS = (32, 64, 128, 256)
DIM = WIDTHS[-1]
# nothing is cut off at the edges: without pretrained weights there is no margin to imitate
PREPROCESSING = Preprocessing(
    size=128, resize=128, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


class SmallCNN(nn.Module):
    """Four times convolution, batch norm, ReLU and pooling, then the mean over the area.

    Each of the four halves the height and the width.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *WIDTHS[:-1])
        self.features = nn.Sequential(*map(_block, inputs, WIDTHS))
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 images (n, 3, s, s), s at least 16 pixels, to float32 features (n, 256)."""
        return torch.flatten(self.pool(self.features(images)), 1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        # no bias: batch norm has one
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


class SmallCNNFamily(Family):
    """One network, without any weights."""

    def names(self) -> tuple[str, ...]:
        """Its name."""
        return ("small_cnn",)

    def build(self, name: str) -> Architecture:
        """Make the network."""
        return Architecture(SmallCNN(), DIM, ("classifier",), PREPROCESSING)

    def has_weights(self, name: str) -> bool:
        """There are none."""
        return False

    def at_hand(self, name: str) -> bool:
        """There are none."""
        return False

    def load_default(self, name: str, architecture: Architecture) -> None:
        """Refuse."""
        raise FxError(
            f"{name} has no pretrained weights; train it with `from_scratch`, give a file of "
            "weights, or take `weights=random`"
        )

    def cut_points(self, name: str) -> tuple[str, ...]:
        """Each of the four convolutions, with what follows it, is a block."""
        return tuple(f"features.{number}" for number in range(len(WIDTHS)))


FAMILY = SmallCNNFamily()
