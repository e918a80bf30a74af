"""Weights of a network: how a file of them gets into the architecture.

No file is ever unpickled with its code: ``weights_only=True`` or safetensors.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch import nn

from extract.backbones.weight_files import few
from extract.errors import FxError, one_line
from extract.files import open_regular, stored_entries

# bytes: of a file, of which little is in memory; of what tells of its tensors; and of a file that
# is read as a whole, besides four times the tensors that are looked for
LARGEST_FILE = 2**35
LARGEST_HEADER, LARGEST_PICKLE = 2**24, 2**22
LARGEST_REST = 2**29
# of a pickle, which takes about 30 steps and 4 tuples a tensor
MOST_STEPS, MOST_TUPLES = 1_000_000, 50_000
# pickles at the beginning of a file that was written before PyTorch 1.6
OLD_PICKLES = 5
# times that a state dict may lie in another one, or its names have a prefix
DEEPEST = 8
_HARMLESS = re.compile(
    r"torch \w+|torch\.(cuda|sparse|storage|serialization|nn\.parameter) \w+"
    r"|torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch\._tensor _rebuild_from_type_v2|collections (OrderedDict|Counter)"
    r"|(builtins|__builtin__) (set|complex)"
)

# of names of tensors, and what a state dict may lie under
_PREFIXES, _WRAPPERS = (
    ("module.", "_orig_mod.", "model."),
    ("state_dict", "model_state_dict", "model"),
)
_FINETUNED = ("backbone.", "classifier.")  # what fine-tuning calls the two parts of a network
# classifiers that torchvision's GoogLeNet and Inception v3 have besides the final one
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# torchvision's DenseNet files were written before PyTorch forbade dots in module names
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")


def read_state_dict(path: Path, *, needed: int = 2**28) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors file or of a PyTorch checkpoint, in the file's order.

    The state dict may lie under "state_dict", "model" or "model_state_dict", and its names may
    carry the prefixes that DataParallel ("module."), torch.compile ("_orig_mod.") or Lightning
    ("model.") give. Of a fine-tuned network, the backbone is read.

    No tensor is in memory before it is used: the file is mapped. One that was written before
    PyTorch 1.6 cannot be, is read as a whole, and may be four times as large as what is needed.

    Parameters
    ----------
    path : the file
    needed : bytes of the tensors that are looked for

    Raises
    ------
    FxError
        If the file is not there, is damaged, or holds more than tensors and plain values.
    """
    try:
        return _tensors_of(_content(path, needed), path)
    except FxError:
        raise
    except pickle.UnpicklingError as error:
        raise FxError(
            f"{path} is damaged or holds Python objects, which fx never unpickles; save the "
            "tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    # what a damaged file makes the readers raise has no common type
    except Exception as error:
        raise FxError(
            f"cannot read weights from {path} ({one_line(error)}); it may be damaged: get it again"
        ) from error


def _content(path: Path, needed: int) -> Any:
    """Read what is in a file, once it is known to take no more memory than it has."""
    with open_regular(path, LARGEST_FILE) as (file, status):
        if path.suffix == ".safetensors":
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            return load_file(path)
        zipped = file.read(4) == b"PK\3\4"
        if zipped:
            _check_archive(file)
        else:
            largest = 4 * needed + LARGEST_REST
            if status.st_size > largest:
                raise ValueError(
                    f"{status.st_size:,} bytes where a file that is no zip may have {largest:,}"
                )
            file.seek(0)
            _check_pickles(file.read(LARGEST_PICKLE), count=OLD_PICKLES)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


def _check_archive(file: BinaryIO) -> None:
    entries = stored_entries(file)
    for entry in entries:
        is_tensor = re.fullmatch(r"[^/]+/data/\d+", entry.filename)
        if not is_tensor and entry.file_size > LARGEST_PICKLE:
            raise BadZipFile(f"{entry.filename[:80]!r} of {entry.file_size:,} bytes")
    with ZipFile(file) as archive:
        for entry in entries:
            # PyTorch finds it in any case
            if entry.filename.lower().endswith("data.pkl"):
                _check_pickles(archive.read(entry), count=1)


def _check_pickles(data: bytes, count: int) -> None:
    """Raise UnpicklingError unless the pickles at the beginning build what a state dict is made of.

    PyTorch lets in more, ``bytearray(10**10)`` among it.
    """
    file, steps, tuples = io.BytesIO(data), 0, 0
    for _ in range(count):
        for step, argument, _ in pickletools.genops(file):
            steps += 1
            tuples += step.name.startswith("TUPLE")
            # a tuple of a tuple of … as a key of a dictionary would end the process
            if steps > MOST_STEPS or tuples > MOST_TUPLES:
                raise pickle.UnpicklingError("too many steps")
            if step.name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument)):
                raise pickle.UnpicklingError(str(argument))


def _tensors_of(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Find the state dict in what a file holds, and give its tensors their own names."""
    for _ in range(DEEPEST):
        if isinstance(content, Mapping):
            inner = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(inner, content)
    tensors = (
        {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise FxError(f"{path} holds no state dict (names with tensors); save model.state_dict()")
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_complex() or tensor.is_quantized:
            raise FxError(f"{few([name])} in {path} is no tensor of plain numbers; save such")
    for _ in range(DEEPEST):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), "")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if all(name.startswith(_FINETUNED) for name in tensors):
        (prefix, _), whole = _FINETUNED, tensors
        tensors = {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}
    return tensors


def fit_state_dict(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, source: str, classifiers: Sequence[str]
) -> None:
    """Load a checkpoint into a backbone, in place; the checkpoint's classifiers are left out.

    Tensors are found by name. Where names differ, those of a file with the same tensors in the
    same order are taken by order: their shapes and the last parts of their names must agree all
    along.

    Parameters
    ----------
    module : nn.Module, without a classifier
    state : names and tensors of a checkpoint, with any number of classes or no classifier
    source : str, names the checkpoint in errors
    classifiers : module paths of the architecture's classifiers, such as ("fc",)

    Raises
    ------
    FxError
        If a tensor is missing, left over, or of another shape, or the network has numbers that
        are none (see ``check_numbers``).
    """
    own = module.state_dict()
    needed = {name: tensor for name, tensor in own.items() if not _is_counter(name)}
    given = {
        _OLD_DENSENET.sub(r"\1\2", name): tensor
        for name, tensor in state.items()
        if not _is_counter(name)
    }
    if not needed.keys() <= given.keys() and _same_in_order(needed, given):
        given = dict(zip(needed, given.values(), strict=False))
    missing = [name for name in needed if name not in given]
    ignored = (*(_classifier_prefix(path, needed) for path in classifiers), *_AUXILIARY)
    surplus = [name for name in given if name not in needed and not name.startswith(ignored)]
    reshaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in needed.items()
        if name in given and given[name].shape != tensor.shape
    ]
    found = {"missing": missing, "not expected": surplus, "of another shape": reshaped}
    if problems := [f"{len(names)} {what}: {few(names)}" for what, names in found.items() if names]:
        raise FxError(
            f"the tensors of {source} do not fit the backbone ({'; '.join(problems)}); "
            "give the backbone that they belong to"
        )
    # in place: a copy would lose the versions that state_dict() notes and MNASNet asks for
    own.update({name: given[name] for name in needed})
    own.update({name: state[name] for name in own if _is_counter(name) and name in state})
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise FxError(f"the tensors of {source} cannot be loaded ({one_line(error)})") from error
    check_numbers(module, source=source)


def check_numbers(module: nn.Module, *, source: str) -> None:
    """Refuse a network whose numbers a training that diverged has left.

    Engines differ in what they make of such: OpenVINO's kernels turn a NaN into a plausible 0.

    Parameters
    ----------
    module : nn.Module, with the weights loaded, and so in the dtype that it computes in
    source : str, names the file in errors

    Raises
    ------
    FxError
        If a weight or a buffer is NaN or infinite, or a running variance negative.
    """
    broken = {}
    for name, tensor in module.state_dict().items():
        if count := int(tensor.isfinite().logical_not().sum()):
            broken[name] = f"{count:,} of {tensor.numel():,} numbers NaN or infinite"
        elif name.endswith("running_var") and (count := int((tensor < 0).sum())):
            broken[name] = f"{count:,} of {tensor.numel():,} variances negative"
    if broken:
        name, what = next(iter(broken.items()))
        more = f" (and {len(broken) - 1:,} more tensors are broken)" if len(broken) > 1 else ""
        raise FxError(
            f"the network in {source} is broken: {name} has {what}{more}; its training diverged: "
            "take weights from before that"
        )


def weights_hash(module: nn.Module) -> str:
    """SHA-256, in hex, of a backbone's tensors sorted by name: name, dtype, shape and bytes.

    The counters of batch norm (``num_batches_tracked``) are left out: no feature depends on them,
    and older files of the same weights lack them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not _is_counter(name):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
    return digest.hexdigest()


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _same_in_order(needed: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> bool:
    """Whether `given` begins with the same kinds and shapes and ends there or with a classifier."""

    # the kind (weight, bias, running_mean, ...) too: the tensors of a batch norm share one shape
    def kinds(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Size]]:
        return [(name.rpartition(".")[2], tensor.shape) for name, tensor in tensors.items()]

    rest = [tensor.ndim for tensor in list(given.values())[len(needed) :]]
    return kinds(given)[: len(needed)] == kinds(needed) and rest in ([], [2], [2, 1], [4, 1])


def _classifier_prefix(path: str, needed: Mapping[str, Any]) -> str:
    """The names to ignore: below the module that holds nothing but the classifier."""
    top = path.partition(".")[0] + "."
    return f"{path}." if any(name.startswith(top) for name in needed) else top
