"""Checkpoints: tensors in safetensors files, all else in JSON, nothing that can run code."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from extract.backbones import Backbone, check_numbers, load_backbone
from extract.errors import FxError, one_line
from extract.files import check_room, open_regular, read_record, whole_file, write_whole
from extract.images import Preprocessing
from finetune.network import Network
from finetune.settings import TunedSettings
from finetune.training.history import EpochRow, StepRow
from heads.calibration import Calibration
from heads.evaluation import Evaluation

MODEL_TENSORS = "model.safetensors"
MODEL_RECORD = "model.json"
# bytes of tensors, which are in memory only as far as the network has them
LARGEST_FILE = 2**36

Tensors = dict[str, torch.Tensor]


class TrainingState(msgspec.Struct):
    """Everything that the next epoch depends on, besides what trains and its optimiser.

    It changes from epoch to epoch, and is written to a file now and then.

    Attributes
    ----------
    calibration : of ``best``, on the validation rows
    epoch : epochs that are finished
    history : a row an epoch, from epoch 0 on
    steps : a row a step
    best_epoch, best_loss : the epoch of the lowest calibrated validation log loss
    best : its tensors, before calibration; where final epochs follow, those of the last epoch that
        was judged
    average : tensors of the moving average of the weights, while one is judged
    head_losses : of each validation row, the calibrated log loss before training
    found : settings that were found by trial
    notes : what was not as asked for
    """

    calibration: Calibration
    epoch: Annotated[int, msgspec.Meta(ge=0)] = 0
    history: list[EpochRow] = []
    steps: list[StepRow] = []
    best_epoch: Annotated[int, msgspec.Meta(ge=0)] = 0
    best_loss: float = math.inf
    best: Tensors = {}
    average: Tensors = {}
    head_losses: list[float] = []
    found: TunedSettings = TunedSettings()
    notes: list[str] = []

    @property
    def on_all_rows(self) -> bool:
        """Whether the last epoch trained on the validation rows too, so that none judged it."""
        return bool(self.history) and self.history[-1].calibrated_loss is None


_PLAIN_FIELDS = [n for n in TrainingState.__struct_fields__ if n not in ("best", "average")]


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What model.json says; only what builds the network must be there, what is None is left out.

    Attributes
    ----------
    backbone, weights, weights_hash : name, and what it was before it was trained
    classes : labels, in the order of the logits
    preprocessing, channels : of the pixels that the network expects
    unfreeze, settings : how it was trained
    epochs, best_epoch, n_train, n_validation, n_fitted, trainable_parameters, calibration : as
        ``FinetuneResult`` has them
    metrics : JSON of an ``Evaluation``
    snapshot_fingerprint : of the images
    model_sha256 : of the file of tensors
    """

    backbone: str
    weights: str = ""
    weights_hash: str = ""
    preprocessing: Preprocessing
    channels: Literal[1, 3] = 3  # older records do not say
    classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    unfreeze: int | str | None = None
    settings: dict[str, str | int | float | bool | None] | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    n_train: int | None = None
    n_validation: int | None = None
    n_fitted: int | None = None
    calibration: Calibration | None = None
    trainable_parameters: int | None = None
    metrics: dict[str, Any] | None = None
    snapshot_fingerprint: str | None = None
    versions: dict[str, str] | None = None
    model_sha256: str | None = None

    @classmethod
    def of(cls, backbone: Backbone, classes: Sequence[str], **more: Any) -> "ModelRecord":
        """Describe a network of this backbone; ``more`` are the other fields."""
        return cls(
            backbone=backbone.name,
            weights=backbone.weights,
            weights_hash=backbone.weights_hash,
            preprocessing=backbone.preprocessing,
            channels=1 if backbone.channels == 1 else 3,
            classes=tuple(classes),
            **more,
        )


@dataclass(frozen=True)
class FinetunedModel:
    """A fine-tuned network as it is read back.

    Attributes
    ----------
    network : in inference mode, on the CPU
    record : all that its file says of it
    """

    network: Network
    record: ModelRecord

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the pixels that it expects."""
        return self.record.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels, in the order of the logits."""
        return self.record.classes


def save_model(directory: Path, network: Network, record: ModelRecord) -> None:
    """Write ``model.safetensors`` and ``model.json``.

    Parameters
    ----------
    directory : is made where it is missing
    network : what is delivered
    record : what is kept beside the tensors; their hash is added

    Raises
    ------
    CannotWrite
        If there is no room for it, or nothing can be written there.
    """
    tensors = {name: value.cpu() for name, value in network.state_dict().items()}
    plain = msgspec.to_builtins(record)
    about = {name: value for name, value in plain.items() if value is not None}
    # one without the other is no model
    check_room(directory, bytes_of(tensors) + len(json.dumps(about, indent=2)))
    _write_tensors(directory / MODEL_TENSORS, tensors, {})
    with (directory / MODEL_TENSORS).open("rb") as written:
        # a run that is killed between the two leaves no record with another's tensors
        about["model_sha256"] = _sha256(written)
    write_whole(directory / MODEL_RECORD, json.dumps(about, indent=2) + "\n")


def load_model(directory: Path) -> FinetunedModel:
    """Read a fine-tuned network.

    Raises
    ------
    FxError
        If a file is missing, is not what fx writes, the tensors do not fit the record, or are not
        finite.
    """
    file = directory / MODEL_RECORD
    try:
        record = read_record(file, ModelRecord)
        if record.metrics is not None:
            Evaluation.from_dict(record.metrics)
    except (OSError, ValueError) as error:
        raise FxError(
            f"{file} is no model of fx ({one_line(error)}); give the folder of a fine-tuning"
        ) from error
    tensors = directory / MODEL_TENSORS
    try:
        with open_regular(tensors, LARGEST_FILE) as (opened, _):
            network = _read_network(tensors, record)
            if record.model_sha256 not in (None, _sha256(opened)):
                raise RuntimeError(f"it does not fit {MODEL_RECORD}")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise FxError(
            f"{tensors} cannot be read ({one_line(error)}); fine-tune again with `fresh`"
        ) from error
    check_numbers(network, source=str(tensors))
    return FinetunedModel(network.eval(), record)


def _sha256(file: Any) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read_network(file: Path, record: ModelRecord) -> Network:
    """Build a network, once the file is known to have its classifier, and read its tensors."""
    with safe_open(file, framework="pt") as opened:
        classes, *_ = opened.get_slice("classifier.weight").get_shape() or [0]
    if classes != len(record.classes):
        raise RuntimeError(f"a classifier of {classes} for {len(record.classes)} classes")
    size, channels = record.preprocessing.size, record.channels
    backbone = load_backbone(record.backbone, weights="random", size=size, channels=channels)
    network = Network(backbone.module, nn.Linear(backbone.dim, classes))
    # the file is mapped: memory holds its tensors once
    network.load_state_dict(load_file(file))
    return network


def save_training_state(
    file: Path, state: TrainingState, module: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Write all that the next epoch depends on into one file, whole or not at all.

    Raises
    ------
    CannotWrite
        If there is no room for it, or nothing can be written there.
    """
    tensors = {f"module.{name}": value.cpu() for name, value in module.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in state.best.items()}
    tensors |= {f"average.{name}": value.cpu() for name, value in state.average.items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in moments.items()}
    about = msgspec.to_builtins({name: getattr(state, name) for name in _PLAIN_FIELDS})
    _write_tensors(file, tensors, {"fx": json.dumps(about)})


def load_training_state(
    file: Path, module: nn.Module, optimiser: torch.optim.Optimizer
) -> TrainingState:
    """Read what ``save_training_state`` wrote into what trains and its optimiser.

    Raises
    ------
    FxError
        If the file is damaged.
    """
    try:
        with open_regular(file, LARGEST_FILE), safe_open(file, framework="pt") as opened:
            # not as other records: before the first epoch, the best loss is infinite
            about = json.loads(opened.metadata()["fx"])
            if set(about) != set(_PLAIN_FIELDS):
                raise ValueError("it is of another version")
            state = msgspec.convert(about, TrainingState)
        tensors = load_file(file)
        trained = _below("module.", tensors)
        module.load_state_dict(trained)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _below("optimiser.", tensors).items():
            index, moment = name.split(".", 1)
            moments.setdefault(int(index), {})[moment] = value
        _lay_out_as_trained(moments, optimiser)
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        state.best, state.average = _below("best.", tensors), _below("average.", tensors)
        averaged = [_below("module.", state.average)] if state.average else []
        for found in (state.best, *averaged):
            if _shapes(found) != _shapes(_below("part.", trained)):
                raise RuntimeError("the tensors of the best epoch are another network's")
    except (OSError, SafetensorError, RuntimeError, LookupError, ValueError, TypeError) as error:
        raise FxError(
            f"{file} cannot be read ({one_line(error)}); begin again with `fresh`"
        ) from error
    return state


def _lay_out_as_trained(
    moments: dict[int, dict[str, torch.Tensor]], optimiser: torch.optim.Optimizer
) -> None:
    """Lay moments out in memory as what they belong to: the fused optimiser minds no strides.

    Raises RuntimeError where they are another optimiser's.
    """
    trained = [tensor for group in optimiser.param_groups for tensor in group["params"]]
    for index, of_one in moments.items():
        for name, value in of_one.items():
            if not value.dim():
                continue
            if value.shape != trained[index].shape:
                shapes = f"{tuple(value.shape)}, not {tuple(trained[index].shape)}"
                raise RuntimeError(f"{name} {index} is {shapes}")
            of_one[name] = torch.empty_like(trained[index]).copy_(value)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def bytes_of(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes that tensors take in a file."""
    return sum(value.nbytes for value in tensors.values())


def _write_tensors(file: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    needs = bytes_of(tensors) + sum(map(len, metadata.values()))
    with whole_file(file, needs=needs) as unfinished:
        # not what is channels last; and save_file writes out of the tensors' own memory
        plain = {name: value.contiguous() for name, value in tensors.items()}
        save_file(plain, unfinished, metadata)
