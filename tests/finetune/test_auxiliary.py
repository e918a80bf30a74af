"""Auxiliary classifiers: their gradient reaches the inner layers; without training, no trace."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

from extract.backbones import backbone_info, load_backbone
from finetune.training import Auxiliaries

CLASSES = 5


def images(size: int, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 1, 2, 4])


@pytest.fixture
def googlenet() -> nn.Module:
    return load_backbone("googlenet", weights="random", size=64).module


@pytest.fixture
def hung(googlenet: nn.Module) -> Iterator[Auxiliaries]:
    auxiliaries = Auxiliaries.of(googlenet, CLASSES)
    assert auxiliaries is not None
    yield auxiliaries
    auxiliaries.close()


def frozen_chance(network: nn.Module) -> nn.Module:
    """Leave out dropout, so that two ways to compute the same can be compared."""
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return network


def test_the_losses_are_those_of_torchvisions_own_network_weighted(
    googlenet: nn.Module, hung: Auxiliaries
) -> None:
    options = {"init_weights": False, "aux_logits": True, "transform_input": True}
    reference: Any = models.googlenet(weights=None, num_classes=CLASSES, **options)
    reference.load_state_dict(googlenet.state_dict(), strict=False)
    reference.aux1.load_state_dict(hung.classifiers[0].state_dict())
    reference.aux2.load_state_dict(hung.classifiers[1].state_dict())
    for network in (googlenet, hung, reference):
        frozen_chance(network).train()
    made = reference(images(64))
    expected = 0.3 * cross_entropy(made.aux_logits1, TARGETS)
    expected += 0.3 * cross_entropy(made.aux_logits2, TARGETS)
    googlenet(images(64))
    torch.testing.assert_close(hung.losses(TARGETS, cross_entropy), expected)
    assert [place.weight for place in hung.places] == [0.3, 0.3]


def test_the_gradient_reaches_the_layers_before_and_none_behind(
    googlenet: nn.Module, hung: Auxiliaries
) -> None:
    googlenet.train()(images(64))
    hung.losses(TARGETS, cross_entropy).backward()
    with_gradient = {
        name.split(".")[0] for name, p in googlenet.named_parameters() if p.grad is not None
    }
    assert {"conv1", "inception3a", "inception4a", "inception4d"} <= with_gradient
    assert not {"inception4e", "inception5a", "inception5b"} & with_gradient
    assert googlenet.get_parameter("inception4a.branch1.conv.weight").grad.abs().max() > 0
    assert all(p.grad is not None for p in hung.parameters())


def test_in_inference_mode_the_network_is_as_it_was(googlenet: nn.Module) -> None:
    names = list(googlenet.state_dict())
    with torch.inference_mode():
        before = googlenet.eval()(images(64))
        auxiliaries = Auxiliaries.of(googlenet, CLASSES)
        assert auxiliaries is not None
        assert torch.equal(googlenet(images(64)), before)
    assert list(googlenet.state_dict()) == names
    with pytest.raises(RuntimeError, match="training mode"):
        auxiliaries.losses(TARGETS, cross_entropy)


def test_a_pass_counts_once_and_not_at_all_after_closing(
    googlenet: nn.Module, hung: Auxiliaries
) -> None:
    googlenet.train()(images(64))
    hung.losses(TARGETS, cross_entropy)
    with pytest.raises(RuntimeError, match="training mode"):
        hung.losses(TARGETS, cross_entropy)
    hung.close()
    googlenet(images(64))
    with pytest.raises(RuntimeError, match="training mode"):
        hung.losses(TARGETS, cross_entropy)


def test_copies_of_the_network_keep_nothing(googlenet: nn.Module, hung: Auxiliaries) -> None:
    # with outputs kept, which torch refuses to copy while they have a gradient
    googlenet.train()(images(64))
    pickled: nn.Module = pickle.loads(pickle.dumps(googlenet))
    for copied in (copy.deepcopy(googlenet), pickled):
        copied(2 * images(64))
    torch.manual_seed(0)
    found = hung.losses(TARGETS, cross_entropy)
    googlenet(images(64))
    torch.manual_seed(0)
    torch.testing.assert_close(hung.losses(TARGETS, cross_entropy), found)


def test_its_batch_norm_trains_though_the_networks_does_not(
    googlenet: nn.Module, hung: Auxiliaries
) -> None:
    googlenet.train()(images(64))
    hung.eval()
    before = hung.classifiers[0].conv.bn.running_mean.clone()
    hung.losses(TARGETS, cross_entropy)
    assert not torch.equal(hung.classifiers[0].conv.bn.running_mean, before)


def test_the_first_weights_are_the_seeds_and_move_no_other_chance(googlenet: nn.Module) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    made = [Auxiliaries.of(googlenet, CLASSES, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    first, again, other = (one.classifiers[0].fc2.weight for one in made if one is not None)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["resnet18", "small_cnn"])
def test_other_networks_have_none(name: str) -> None:
    assert Auxiliaries.of(backbone_info(name)[1], CLASSES) is None


def test_299_pixels_are_the_least_that_inceptions_own_classifier_can_see() -> None:
    # shapes alone
    module = backbone_info("inception_v3")[1]
    seen: list[torch.Tensor] = []
    module.Mixed_6e.register_forward_hook(lambda *given: seen.append(given[-1]))
    for size in (299, 298):
        module(torch.empty(2, 3, size, size, device="meta"))
    assert [tuple(maps.shape[1:]) for maps in seen] == [(768, 17, 17), (768, 16, 16)]
    classifier = models.inception.InceptionAux(768, CLASSES).to("meta")
    assert classifier(seen[0]).shape == (2, CLASSES)
    with pytest.raises(RuntimeError):
        classifier(seen[1])


@pytest.mark.slow
@pytest.mark.parametrize("size", [299, 96])
def test_inception_trains_with_one_of_weight_0_4(size: int) -> None:
    module = load_backbone("inception_v3", weights="random", size=size).module
    auxiliaries = Auxiliaries.of(module, CLASSES)
    assert auxiliaries is not None
    seen: list[torch.Tensor] = []
    hook = module.Mixed_6e.register_forward_hook(lambda *given: seen.append(given[-1]))
    module.train()(images(size))
    loss = auxiliaries.losses(TARGETS, cross_entropy)
    loss.backward()
    hook.remove()
    (maps,) = seen
    assert maps.shape[-1] == (17 if size == 299 else 4)
    if size == 299:
        expected = 0.4 * cross_entropy(auxiliaries.classifiers[0](maps), TARGETS)
        torch.testing.assert_close(loss, expected)
    assert module.Conv2d_1a_3x3.conv.weight.grad.abs().max() > 0
    assert module.Mixed_7a.branch3x3_1.conv.weight.grad is None
