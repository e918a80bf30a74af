"""Blocks: where networks are cut, and that a cut network is the same network."""

import itertools
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import group_parameters
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from extract.backbones import backbone_info, load_backbone
from extract.errors import FxError
from finetune.blocks import cut, find_blocks

# one member or more of every family: pixels, and what its blocks are
FAMILIES: dict[str, tuple[int, list[str]]] = {
    "resnet18": (64, ["conv1-bn1", "layer1", "layer2", "layer3", "layer4"]),
    "resnext50_32x4d": (64, ["conv1-bn1", "layer1", "layer2", "layer3", "layer4"]),
    "densenet121": (
        64,
        [
            "features.conv0-features.norm0",
            "features.denseblock1-features.transition1",
            "features.denseblock2-features.transition2",
            "features.denseblock3-features.transition3",
            "features.denseblock4-features.norm5",
        ],
    ),
    "alexnet": (96, ["features.0", "features.3", "features.6-features.10", "classifier"]),
    "vgg11_bn": (
        48,
        [
            "features.0-features.1",
            "features.4-features.5",
            "features.8-features.12",
            "features.15-features.19",
            "features.22-features.26",
            "classifier",
        ],
    ),
    "googlenet": (
        64,
        [
            "conv1",
            "conv2-conv3",
            "inception3a-inception3b",
            "inception4a-inception4e",
            "inception5a-inception5b",
        ],
    ),
    "inception_v3": (
        128,
        [
            "Conv2d_1a_3x3-Conv2d_2b_3x3",
            "Conv2d_3b_1x1-Conv2d_4a_3x3",
            "Mixed_5b-Mixed_5d",
            "Mixed_6a-Mixed_6e",
            "Mixed_7a-Mixed_7c",
        ],
    ),
    "mobilenet_v2": (
        64,
        [
            "features.0-features.1",
            "features.2-features.3",
            "features.4-features.6",
            "features.7-features.13",
            "features.14-features.18",
        ],
    ),
    "mobilenet_v3_small": (
        64,
        [
            "features.0",
            "features.1",
            "features.2-features.3",
            "features.4-features.8",
            "features.9-features.12",
            "classifier",
        ],
    ),
    "efficientnet_b0": (
        64,
        [
            "features.0-features.1",
            "features.2",
            "features.3",
            "features.4-features.5",
            "features.6-features.8",
        ],
    ),
    "efficientnet_lite0": (
        64,
        ["conv_stem-blocks.0", "blocks.1", "blocks.2", "blocks.3-blocks.4", "blocks.5-bn2"],
    ),
    "mnasnet0_5": (
        64,
        ["layers.0-layers.7", "layers.8", "layers.9", "layers.10-layers.11", "layers.12-layers.15"],
    ),
    "shufflenet_v2_x0_5": (64, ["conv1", "stage2", "stage3", "stage4-conv5"]),
    "squeezenet1_1": (
        64,
        ["features.0", "features.3-features.4", "features.6-features.7", "features.9-features.12"],
    ),
    "regnet_y_400mf": (
        64,
        [
            "stem",
            "trunk_output.block1",
            "trunk_output.block2",
            "trunk_output.block3",
            "trunk_output.block4",
        ],
    ),
    "convnext_tiny": (
        64,
        [
            "features.0-features.1",
            "features.2-features.3",
            "features.4-features.5",
            "features.6-classifier",
        ],
    ),
    "timm/legacy_xception": (
        64,
        ["conv1-bn2", "block1", "block2", "block3-block11", "block12-bn4"],
    ),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, nn.Module, int]:
    name = str(request.param)
    size = FAMILIES[name][0]
    return name, load_backbone(name, weights="random", size=size).module, size


def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def copied(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def test_trunk_and_tail_in_a_row_are_the_network(family: tuple[str, nn.Module, int]) -> None:
    _, module, size = family
    x = images(size)
    with torch.inference_mode():
        expected = module(x)
        assert expected.isfinite().all()
        assert not torch.equal(expected[0], expected[1])
        blocks = find_blocks(module, size)
        for unfreeze in range(len(blocks) + 1):
            trunk, tail = cut(module, size, unfreeze)
            middle = trunk(x)
            given = middle.clone()
            assert torch.equal(tail(middle), expected)
            assert torch.equal(middle, given), "the tail changed its input"
            if 0 < unfreeze < len(blocks):
                assert tuple(middle.shape[1:]) == blocks[-unfreeze - 1].output_shape
        assert tuple(expected.shape[1:]) == blocks[-1].output_shape


def test_blocks_are_the_stages_that_people_name(family: tuple[str, nn.Module, int]) -> None:
    name, module, size = family
    blocks = find_blocks(module, size)
    assert [block.name for block in blocks] == FAMILIES[name][1]
    assert [block.number for block in blocks] == list(range(1, len(blocks) + 1))
    assert sum(block.parameters for block in blocks) == sum(p.numel() for p in module.parameters())
    assert all(block.parameters > 0 for block in blocks)
    assert sum(block.flops_share for block in blocks) == pytest.approx(1)


def test_both_parts_share_every_tensor_with_the_network(
    family: tuple[str, nn.Module, int],
) -> None:
    _, module, size = family
    whole = module.state_dict()
    trunk, tail = (part.state_dict() for part in cut(module, size, 2))
    assert not trunk.keys() & tail.keys()
    assert trunk.keys() | tail.keys() == whole.keys()
    for name, tensor in (trunk | tail).items():
        assert tensor.data_ptr() == whole[name].data_ptr()


def test_a_cut_network_also_trains_like_the_whole(family: tuple[str, nn.Module, int]) -> None:
    # dropout, stochastic depth and batch norm must have stayed what they are
    _, module, size = family
    before = copied(module.named_buffers())
    x = images(size, 4)

    def outcome(*parts: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        value = x.clone()
        with torch.no_grad():
            for part in parts:
                value = part.train()(value)
        statistics = copied(module.named_buffers())
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
        return value, statistics

    expected, statistics = outcome(module)
    result, after = outcome(*cut(module, size, 2))
    assert torch.equal(result, expected)
    assert all(torch.equal(after[name], statistics[name]) for name in before)
    module.eval()


def test_a_step_on_the_tail_changes_the_tail_alone(family: tuple[str, nn.Module, int]) -> None:
    _, module, size = family
    before = copied(module.state_dict().items())
    trunk, tail = cut(module, size, 1)
    trunk.eval().requires_grad_(False)
    tail.train()
    optimiser = torch.optim.SGD([p for p in tail.parameters() if p.requires_grad], lr=0.1)
    (tail(trunk(images(size, 4))) ** 2).mean().backward()
    optimiser.step()
    after = module.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert changed <= tail.state_dict().keys()
    for name in changed:
        after[name].copy_(before[name])
    module.eval().requires_grad_(True)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer3"),
        ("densenet121", "features.transition3.conv"),
        ("mobilenet_v2", "features.13"),
        ("googlenet", "inception4e"),
    ],
)
def test_the_cut_before_the_last_block_is_where_torchvision_finds_that_layer(
    name: str, layer: str
) -> None:
    module = load_backbone(name, weights="random", size=64).module
    reference = create_feature_extractor(module, {layer: "x"})
    trunk, _ = cut(module, 64, 1)
    with torch.inference_mode():
        assert torch.equal(trunk(images(64)), reference(images(64))["x"])


@pytest.mark.parametrize(
    "name",
    ["resnet50", "vgg16", "inception_v3", "mobilenet_v2"],
)
def test_the_size_of_the_images_does_not_move_the_blocks(name: str) -> None:
    info, module = backbone_info(name)
    expected = [block.name for block in find_blocks(module, info.size)]
    for size in (96, 150, 321):
        assert [block.name for block in find_blocks(module, size)] == expected


def test_tracing_leaves_the_modes_of_all_layers_as_they_are() -> None:
    module = load_backbone("resnet18", weights="random").module
    module.train()
    module.layer1.eval()
    modes = [part.training for part in module.modules()]
    find_blocks(module, 64)
    cut(module, 64, 2)
    assert [part.training for part in module.modules()] == modes


@pytest.mark.parametrize("unfreeze", [-1, 6, 100])
def test_a_number_of_blocks_that_there_is_not(unfreeze: int) -> None:
    _, module = backbone_info("resnet18")
    with pytest.raises(FxError, match=r"`unfreeze` must be from 0 to 5, .* or all; got"):
        cut(module, 64, unfreeze)


def test_images_too_small_for_the_network() -> None:
    _, module = backbone_info("inception_v3")
    with pytest.raises(FxError, match=r"64x64.*larger `size`"):
        find_blocks(module, 64)


class _Undecided(nn.Module):
    """Not traceable: what it does depends on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x if x.sum() > 0 else -x)


class _Forgetful(nn.Module):
    """Its dropout is a function: a trace would fix whether it drops."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.layers(x), 0.5, training=self.training)


@pytest.mark.parametrize("network", [_Undecided, _Forgetful])
def test_what_cannot_be_traced_trains_as_a_whole_or_not_at_all(network: type[nn.Module]) -> None:
    module = network().eval()
    x = images(16)
    for unfreeze in (0, "all"):
        trunk, tail = cut(module, 16, unfreeze)  # type: ignore[arg-type]
        assert torch.equal(tail(trunk(x)), module(x))
    assert cut(module, 16, 0)[0] is module
    assert cut(module, 16, "all")[1] is module
    for refused in (lambda: find_blocks(module, 16), lambda: cut(module, 16, 1)):
        with pytest.raises(FxError, match=r"cannot cut _\w+ into blocks; .*`unfreeze=all`"):
            refused()


class _Residual(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.act(self.norm(x)))
        return self.scale * y + nn.functional.interpolate(x, y.shape[-2:])


def _layer(kind: str) -> nn.Module:
    return {
        "conv": lambda: nn.Conv2d(6, 6, 3, padding=1),
        "shrink": lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1),
        "pool": lambda: nn.MaxPool2d(2, ceil_mode=True),
        "norm": lambda: nn.BatchNorm2d(6),
        "relu": lambda: nn.ReLU(inplace=True),
        "drop": lambda: nn.Dropout(0.5),
        "nothing": lambda: nn.Identity(),
        "residual": lambda: _Residual(6, 1),
        "residual_shrink": lambda: _Residual(6, 2),
    }[kind]()


KINDS = ["conv", "shrink", "pool", "norm", "relu", "drop", "nothing", "residual", "residual_shrink"]


@settings(max_examples=20, deadline=None)
@given(
    stages=st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), max_size=4),
    flat=st.booleans(),
    hidden=st.booleans(),
)
def test_any_network_of_such_layers_is_cut_without_loss(
    stages: list[list[str]], flat: bool, hidden: bool
) -> None:
    torch.manual_seed(0)
    groups = [[_layer(kind) for kind in stage] for stage in stages]
    body = list(itertools.chain(*groups)) if flat else [nn.Sequential(*group) for group in groups]
    ends = [nn.Linear(6, 5), nn.ReLU(inplace=True)] if hidden else []
    module = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *ends
    ).eval()
    x = images(32)
    blocks = find_blocks(module, 32)
    assert sum(block.parameters for block in blocks) == sum(p.numel() for p in module.parameters())
    for unfreeze in range(len(blocks) + 1):
        trunk, tail = cut(module, 32, unfreeze)
        middle = trunk(x)
        given_middle = middle.clone()
        assert torch.equal(tail(middle), module(x))
        assert torch.equal(middle, given_middle)


@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0",
        "legacy_xception",
        "resnet50d",
        "seresnet50",
        "mobilenetv3_large_100",
        "regnety_002",
        "convnext_atto",
        "densenet121",
        "dla34",
        "inception_v4",
        "repvgg_a2",
        "vgg11_bn",
    ],
)
def test_cuts_of_timms_models_lie_between_the_stages_that_timm_names(name: str) -> None:
    backbone, module = backbone_info(f"timm/{name}")
    stages: dict[str, set[str]] = {}
    for parameter, stage in group_parameters(
        module, module.group_matcher(coarse=True), reverse=True
    ).items():
        stages.setdefault(str(stage), set()).add(parameter)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    blocks = len(find_blocks(module, backbone.size))
    assert blocks >= 3
    for unfreeze in range(1, blocks):
        _, tail = cut(module, backbone.size, unfreeze)
        trains = {names[id(parameter)] for parameter in tail.parameters()}
        for stage in stages.values():
            assert stage <= trains or not stage & trains
