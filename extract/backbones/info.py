"""What is known of a backbone without its weights; nothing is downloaded or computed."""

from dataclasses import dataclass

from torch import nn

from extract.backbones.by_name import build, family_of, names


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone before its weights are loaded.

    Attributes
    ----------
    name : str
    dim : int, numbers in a feature vector
    parameters : int, without the classifier
    size : int, pixels: side of the images that its default weights were trained with
    pretrained : bool, whether there are default weights at all
    at_hand : bool, whether the default weights need no download
    """

    name: str
    dim: int
    parameters: int
    size: int
    pretrained: bool
    at_hand: bool


def list_backbones() -> list[BackboneInfo]:
    """Every backbone but timm's (``timm/NAME``, some hundreds), by name; no weights are loaded."""
    return [backbone_info(name)[0] for name in names()]


def backbone_info(name: str) -> tuple[BackboneInfo, nn.Module]:
    """What is known of a backbone without its weights.

    Returns
    -------
    info : BackboneInfo
    module : nn.Module on the ``meta`` device: shapes and parameter counts, no numbers

    Raises
    ------
    FxError
        If the name is unknown.
    """
    from accelerate import init_empty_weights

    # not torch.device("meta"): RegNet computes its widths with tensors
    with init_empty_weights():
        architecture = build(name, initialise=False)
    family = family_of(name)
    info = BackboneInfo(
        name=name,
        dim=architecture.dim,
        parameters=sum(parameter.numel() for parameter in architecture.module.parameters()),
        size=architecture.preprocessing.size,
        pretrained=family.has_weights(name),
        at_hand=family.at_hand(name),
    )
    return info, architecture.module.eval().to("meta")
