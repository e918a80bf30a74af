"""Weights of a network: how a file of them gets into the architecture.

A file may hold several networks, each with or without its classifier, below keys and prefixes of
any name: that one is taken whose tensors are the architecture's.

No file is ever unpickled with its code: ``weights_only=True`` or safetensors.
"""

import codecs
import hashlib
import io
import pickle
import pickletools
import re
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import torch
from safetensors.torch import load_file
from torch import nn

from extract.errors import FxError, listed, one_line
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
# times that a state dict may lie in another one, and prefixes below which one is looked for
DEEPEST, MOST_PREFIXES = 8, 32
_HARMLESS = re.compile(
    r"torch \w+|torch\.(cuda|sparse|storage|serialization|nn\.parameter) \w+"
    r"|torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch\._tensor _rebuild_from_type_v2|collections (OrderedDict|Counter)"
    r"|(builtins|__builtin__) (set|complex)"
)
# what training programs keep their settings in: read as dictionaries, or left out
_DICTIONARIES = re.compile(
    r"(pytorch_)?lightning\.\S+ AttributeDict|yacs\.config CfgNode|easydict EasyDict"
    r"|addict\.addict Dict"
)
_SETTINGS = re.compile(
    r"argparse Namespace|types SimpleNamespace|pathlib(\._local)? (Pure)?(Posix|Windows)?Path"
    r"|numpy (dtype|ndarray)|numpy\._?core\.multiarray (scalar|_reconstruct)"
    r"|datetime (datetime|date|time|timedelta|timezone)"
)
# how bytes are written, numpy's among them; PyTorch calls it with whatever encoding is named
_ENCODE, _LATIN = "_codecs encode", ("latin1", "latin-1", "latin_1")
# that DataParallel, torch.compile and Lightning put before all names
_PREFIXES = ("module.", "_orig_mod.", "model.")
# of an average over the steps of a training, which is what timm and torchvision measure
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa)(?![a-z])|averag", re.IGNORECASE)
# of names: counts that no feature depends on, PyTorch's and a profiler's (thop)
_COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
# classifiers that torchvision's GoogLeNet and Inception v3 have besides the final one
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# torchvision's DenseNet files were written before PyTorch forbade dots in module names
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")


# how files begin that people take for weights
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS, in the place of the file (git lfs pull)",
    b"<": "a web page",
    b"\x1f\x8b": "packed by gzip",
    b"\x89HDF": "HDF5, as Keras writes it",
}


@dataclass(frozen=True)
class StateDict:
    """Tensors that lie together in a file.

    Attributes
    ----------
    place : the keys, and the prefix of names, that they lie below, between dots; "" for the top
    tensors : by the rest of their names, in the file's order
    """

    place: str
    tensors: Mapping[str, torch.Tensor]


def read_state_dict(path: Path, *, needed: int = 2**28) -> dict[str, torch.Tensor]:
    """Read the largest of a file's state dicts, without the prefixes that wrappers give its names.

    Parameters are those of ``read_state_dicts``, and so is what is raised.
    """
    found = read_state_dicts(path, needed=needed)
    # of those with as many, one that lies in another
    one = max(found, key=lambda one: (len(one.tensors), one.place.count(".") + bool(one.place)))
    _check_plain(one.tensors, str(path))
    tensors = dict(one.tensors)
    for _ in range(DEEPEST):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), "")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def read_state_dicts(path: Path, *, needed: int = 2**28) -> list[StateDict]:
    """Read the state dicts of a .safetensors file or of a PyTorch checkpoint.

    A file's content says which of the two it is, not its name. A state dict is what has names of
    tensors; it may lie below any keys.

    No tensor is in memory before it is used: the file is mapped. One that was written before
    PyTorch 1.6, or that PyTorch wrote with the suffix .safetensors, cannot be, is read as a whole,
    and may be four times as large as what is needed.

    Parameters
    ----------
    path : the file
    needed : bytes of the tensors that are looked for

    Raises
    ------
    FxError
        If the file is not there, is damaged, or holds no tensors, or more than these and plain
        values.
    """
    try:
        return _state_dicts(_content(path, needed), path)
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
            f"cannot read weights from {path} ({one_line(error)}); it may be damaged; give "
            "safetensors, or what torch.save(model.state_dict(), FILE) writes"
        ) from error


def _content(path: Path, needed: int) -> Any:
    """Read what is in a file, once it is known to take no more memory than it has."""
    with open_regular(path, LARGEST_FILE) as (file, status):
        start = file.read(9)
        zipped = start.startswith(b"PK\3\4")
        # the length of a header in JSON, and then that
        if start[8:] == b"{" or (path.suffix == ".safetensors" and not zipped):
            length = int.from_bytes(start[:8], "little")
            if length > LARGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes")
            return load_file(path)
        # of that name PyTorch reads nothing but what the name says, where it is given the name
        mapped = zipped and path.suffix != ".safetensors"
        largest = 4 * needed + LARGEST_REST
        if not mapped and status.st_size > largest:
            raise ValueError(
                f"{status.st_size:,} bytes where a file that is "
                f"{'named .safetensors' if zipped else 'no zip'} may have {largest:,}"
            )
        if zipped:
            settings = _check_archive(file)
        else:
            file.seek(0)
            pickles = file.read(LARGEST_PICKLE)
            if told := next((t for b, t in _OTHER_FILES.items() if pickles.startswith(b)), None):
                raise ValueError(f"it is {told}")
            settings = _check_pickles(pickles, count=OLD_PICKLES)
        file.seek(0)
        opened = path if mapped else file
        # of these names PyTorch then takes what is given here, and imports nothing
        with torch.serialization.safe_globals([(kind, name) for name, kind in settings.items()]):
            return torch.load(opened, map_location="cpu", weights_only=True, mmap=mapped)


class _LeftOut:
    """Takes the place of an object that is not read, whatever it is made of."""

    def __new__(cls, *_: object) -> "_LeftOut":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def _check_archive(file: BinaryIO) -> dict[str, type]:
    try:
        entries = stored_entries(file)
    except BadZipFile as error:
        if "/code/" in str(error):  # of a network as a program
            raise pickle.UnpicklingError("TorchScript") from error
        raise
    for entry in entries:
        is_tensor = re.fullmatch(r"[^/]+/data/\d+", entry.filename)
        if not is_tensor and entry.file_size > LARGEST_PICKLE:
            raise BadZipFile(f"{entry.filename[:80]!r} of {entry.file_size:,} bytes")
    settings: dict[str, type] = {}
    with ZipFile(file) as archive:
        for entry in entries:
            # PyTorch finds it in any case
            if entry.filename.lower().endswith("data.pkl"):
                settings |= _check_pickles(archive.read(entry), count=1)
    return settings


def _check_pickles(data: bytes, count: int) -> dict[str, type]:
    """Raise UnpicklingError unless the pickles at the beginning build what a state dict is made of.

    PyTorch lets in more, ``bytearray(10**10)`` among it. Returns the names of classes that hold
    settings, and what is to be made in their place.
    """
    file, steps, tuples = io.BytesIO(data), 0, 0
    settings: dict[str, type] = {}
    texts: set[str] = set()
    encodes = False
    for _ in range(count):
        for step, argument, _ in pickletools.genops(file):
            steps += 1
            tuples += step.name.startswith("TUPLE")
            # a tuple of a tuple of … as a key of a dictionary would end the process
            if steps > MOST_STEPS or tuples > MOST_TUPLES:
                raise pickle.UnpicklingError("too many steps")
            if step.name == "GLOBAL":
                name = str(argument)
                if _DICTIONARIES.fullmatch(name):
                    settings[name.replace(" ", ".")] = OrderedDict
                elif _SETTINGS.fullmatch(name):
                    settings[name.replace(" ", ".")] = _LeftOut
                elif name == _ENCODE:
                    encodes = True
                elif not _HARMLESS.fullmatch(name):
                    raise pickle.UnpicklingError(name)
            elif isinstance(argument, str):
                texts.add(argument)
    # some encodings make more bytes of bytes, and so without an end
    if encodes and any(map(_is_encoding, texts.difference(_LATIN))):
        raise pickle.UnpicklingError(_ENCODE)
    return settings


def _is_encoding(text: str) -> bool:
    try:
        codecs.lookup(text)
    except (LookupError, ValueError):
        return False
    return True


def _state_dicts(content: Any, path: Path) -> list[StateDict]:
    """Find what has names of tensors in what a file holds, from the top down."""
    found, seen = [], set()
    waiting = deque([(content, "", 0)])
    while waiting:
        part, place, depth = waiting.popleft()
        # it may hold itself
        if not isinstance(part, Mapping) or id(part) in seen or depth > DEEPEST:
            continue
        seen.add(id(part))
        # an OrderedDict takes any attributes
        if hidden := getattr(part, "__dict__", {}).keys() & dir(dict):
            raise ValueError(f"a dictionary without its own {listed(sorted(hidden))}")
        named = {name: value for name, value in part.items() if isinstance(name, str)}
        tensors = {name: v for name, v in named.items() if isinstance(v, torch.Tensor)}
        if tensors:
            found.append(StateDict(place, tensors))
        waiting += [(inner, _below(place, name), depth + 1) for name, inner in named.items()]
    if not found:
        raise FxError(f"{path} holds no state dict (names with tensors); save model.state_dict()")
    return found


def _check_plain(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.is_complex() or tensor.is_quantized:
            raise FxError(f"{listed([name])} in {source} is no tensor of plain numbers; save such")


def _below(place: str, name: str) -> str:
    return f"{place}.{name}".strip(".")


def fit_state_dict(
    module: nn.Module,
    found: Sequence[StateDict],
    *,
    source: str,
    classifiers: Sequence[str],
    channels: int = 3,
) -> tuple[str, ...]:
    """Load a checkpoint into a backbone, in place; the checkpoint's classifiers are left out.

    Tensors are found by name, below any prefix; what lies beside that prefix is left out. Where
    names differ, those of a file with the same tensors in the same order are taken by order: their
    shapes and the last parts of their names must agree all along.

    Of several networks that fit, that one is taken whose place says that it is an average over the
    steps of a training (``ema``, ``swa``, ``averaged``), else the first.

    Parameters
    ----------
    module : nn.Module, without a classifier
    found : what a checkpoint holds, with any number of classes or no classifier
    source : str, names the checkpoint in errors
    classifiers : module paths of the architecture's classifiers, such as ("fc",)
    channels : int
        1 lets in first convolutions of one channel: they become the first of the module's three,
        and the others 0, so that the sum of the three is the file's.

    Returns
    -------
    notes : tuple of str, which network was taken, where there were several

    Raises
    ------
    FxError
        If a tensor is missing, left over, or of another shape, or the network has numbers that
        are none (see ``check_numbers``).
    """
    own = module.state_dict()
    needed = {name: tensor for name, tensor in own.items() if not _is_counter(name)}
    views = [
        (view, _problems(view, needed, classifiers, channels))
        for one in found
        for view in _views(one, needed)
    ]
    fitting = [view for view, differing in views if not differing]
    if not fitting:
        fitting = [
            view
            for one in found
            for view in _in_order(one, needed)
            if not _problems(view, needed, classifiers, channels)
        ]
    if not fitting:
        # of the one that has the most of the names
        names = needed.keys()
        _, told = max(
            views, key=lambda view: (len(names & view[0].tensors.keys()), len(view[0].tensors))
        )
        raise FxError(f"the tensors of {source} do not fit the backbone ({'; '.join(told)})")
    taken = next((view for view in fitting if _AVERAGE.search(view.place)), fitting[0])
    _check_plain(taken.tensors, source)
    for name, tensor in needed.items():
        given = taken.tensors[name]
        if given.shape != tensor.shape:
            given = torch.cat([given, torch.zeros_like(given).repeat(1, 2, 1, 1)], dim=1)
        # in place: a copy would lose the versions that state_dict() notes and MNASNet asks for
        own[name] = given
    own.update({n: taken.tensors[n] for n in own if _is_counter(n) and n in taken.tensors})
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise FxError(f"the tensors of {source} cannot be loaded ({one_line(error)})") from error
    check_numbers(module, source=source)
    if not (others := listed(_named(view.place) for view in fitting if view is not taken)):
        return ()
    return (f"weights: {_named(taken.place)} of {source} was taken; {others} would fit, too",)


def _views(one: StateDict, needed: Mapping[str, torch.Tensor]) -> Iterator[StateDict]:
    """Give what lies below each prefix that a network may have, named as in the architecture."""
    given = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in one.tensors.items()}
    names = list(needed)
    ends = first, last = names[0], names[-1]
    prefixes = [name.removesuffix(end) for end in ends for name in given if name.endswith(end)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    # first those below which a whole network may be; the others tell what is missing
    prefixes.sort(key=lambda prefix: not (prefix + first in given and prefix + last in given))
    for prefix in list(dict.fromkeys(("", *prefixes)))[:MOST_PREFIXES]:
        below = {n.removeprefix(prefix): t for n, t in given.items() if n.startswith(prefix)}
        yield StateDict(_below(one.place, prefix), below)


def _in_order(one: StateDict, needed: Mapping[str, torch.Tensor]) -> Iterator[StateDict]:
    """Give the tensors the architecture's names, where their kinds and shapes agree all along."""
    given = {name: tensor for name, tensor in one.tensors.items() if not _is_counter(name)}
    if _same_in_order(needed, given):
        yield StateDict(one.place, dict(zip(needed, given.values(), strict=False)))


def _problems(
    view: StateDict, needed: Mapping[str, torch.Tensor], classifiers: Sequence[str], channels: int
) -> list[str]:
    """Say in what tensors differ from an architecture's: how many, and the first few."""
    given = view.tensors
    ignored = (*(_classifier_prefix(path, needed) for path in classifiers), *_AUXILIARY)
    both = [(name, given[name], tensor) for name, tensor in needed.items() if name in given]
    grey = [name for name, found, tensor in both if _is_grey(found, tensor)]
    differing = {
        "missing": [name for name in needed if name not in given],
        "not expected": [
            name
            for name in given
            if not (name in needed or _is_counter(name) or name.startswith(ignored))
        ],
        "of another shape": [
            f"{name} {tuple(found.shape)} instead of {tuple(tensor.shape)}"
            for name, found, tensor in both
            if found.shape != tensor.shape and not (channels == 1 and name in grey)
        ],
        "of whole numbers": [
            name
            for name, found, tensor in both
            if tensor.is_floating_point() and not found.is_floating_point()
        ],
    }
    told = [f"{len(names):,} {what}: {listed(names)}" for what, names in differing.items() if names]
    if told and grey and channels != 1:
        return [*told, "it is a network for grey images: give `channels=1`"]
    return [*told, "give the backbone that they belong to"] if told else []


def _is_grey(given: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a convolution of three channels is given as one of one."""
    if own.ndim != 4 or own.shape[1] != 3:
        return False
    return given.shape == (own.shape[0], 1, *own.shape[2:])


def _named(place: str) -> str:
    return place or "the top level"


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
    return name.rpartition(".")[2] in _COUNTERS


def _same_in_order(needed: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> bool:
    """Whether `given` begins with the same kinds and shapes and ends there or with a classifier."""

    # the kind (weight, bias, running_mean, ...) too: the tensors of a batch norm share one shape
    def kinds(tensors: Mapping[str, torch.Tensor]) -> list[str]:
        return [name.rpartition(".")[2] for name in tensors]

    shapes = all(
        found.shape == own.shape or _is_grey(found, own)
        for found, own in zip(given.values(), needed.values(), strict=False)
    )
    rest = [tensor.ndim for tensor in list(given.values())[len(needed) :]]
    return (
        shapes
        and kinds(given)[: len(needed)] == kinds(needed)
        and rest in ([], [2], [2, 1], [4, 1])
    )


def _classifier_prefix(path: str, needed: Mapping[str, Any]) -> str:
    """The names to ignore: below the module that holds nothing but the classifier."""
    top = path.partition(".")[0] + "."
    return f"{path}." if any(name.startswith(top) for name in needed) else top
