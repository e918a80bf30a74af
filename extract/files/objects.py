"""Places on object storage: what fx uses of ``pathlib.Path``, over obstore.

An object is written whole or not at all, a large one in parts, and is on the storage once that is
answered. Folders are prefixes: they are there while something lies in them. Requests are repeated
by obstore, which waits longer each time, for 20 seconds; what fails then is an OSError.
Credentials come from where obstore finds them (environment, instance metadata); none is kept.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from extract.errors import FxError

# tried here with s3 and http(s); the others are obstore's
SCHEMES = ("s3", "gs", "az", "http", "https")
# a request is repeated for so long, and may take so long, with all that it brings
RETRY, TIMEOUT = timedelta(seconds=20), timedelta(seconds=20)
BACKOFF: Any = {
    "init_backoff": timedelta(seconds=0.1),
    "max_backoff": timedelta(seconds=3),
    "base": 2,
}


@dataclass(frozen=True)
class ObjectStats:
    """What a listing says of an object, by the names of ``os.stat_result``.

    Attributes
    ----------
    st_size : int, bytes
    st_mtime_ns, st_ctime_ns : int, when it was written, nanoseconds since 1970
    st_ino : int, hash of its entity tag, which changes with its bytes
    e_tag : str or None
    """

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int
    e_tag: str | None
    st_mode = stat.S_IFREG

    @classmethod
    def of(cls, meta: Any) -> ObjectStats:
        """Take them out of what obstore says."""
        # a listing may say milliseconds where a header says seconds
        written = int(meta["last_modified"].timestamp()) * 10**9
        return cls(meta["size"], written, written, _number(str(meta["e_tag"])), meta["e_tag"])


class StorageFailure(OSError):
    """Object storage does not answer, or not as it should: nothing is known of what lies there."""


class StorageDenied(StorageFailure, PermissionError):
    """Object storage gives no access."""


@dataclass(frozen=True)
class ObjectPath:
    """A place on object storage.

    Parameters
    ----------
    base : scheme and bucket, or host: ``s3://bucket``
    key : below it, without ``/`` at its ends
    """

    base: str
    key: str

    @classmethod
    def parse(cls, url: str) -> ObjectPath:
        """Take a URL apart.

        Raises
        ------
        FxError
            If it names no bucket, or has a password or a signature in it, which would be kept
            wherever the place is.
        """
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        if not bucket:
            raise FxError(f"{url} names no bucket; give {scheme}://BUCKET/NAME")
        if "@" in bucket:
            raise FxError(
                f"{scheme}://{bucket.rpartition('@')[2]} comes with a user's name or password; "
                "leave it out: credentials are taken from the environment"
            )
        if scheme in ("http", "https"):
            key, *query = key.split("?", 1)
            if query:
                raise FxError(
                    f"{scheme}://{bucket}/{key} comes with a query (what follows the ?), which may "
                    "be a signature and is not sent; give an address without one, or s3://"
                )
            key = unquote(key, errors="surrogateescape")
        return cls(f"{scheme}://{bucket}", _tidy(key))

    def __str__(self) -> str:
        key = (
            quote(self.key, errors="surrogateescape") if self.base.startswith("http") else self.key
        )
        return f"{self.base}/{key}"

    as_json = __str__

    def __truediv__(self, other: str | ObjectPath) -> ObjectPath:
        if isinstance(other, ObjectPath) or "://" in other:
            return place(other)  # type: ignore[return-value]  # of a URL
        return ObjectPath(self.base, _tidy(f"{self.key}/{other}"))

    @property
    def inode(self) -> int:
        """A number that another place does not have."""
        return _number(str(self))

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The name's end, from its last dot on."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        """The folder that it lies in."""
        return ObjectPath(self.base, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        """Another one in the same folder."""
        return self.parent / name

    def absolute(self) -> ObjectPath:
        """Itself: it always is."""
        return self

    resolve = absolute

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        """What has to be added to a folder above it."""
        return PurePosixPath(self.key).relative_to(other.key)

    def stat(self) -> ObjectStats:
        """Ask for an object's size, time and tag.

        Raises
        ------
        OSError
            If there is none, or the storage does not answer.
        """
        import obstore

        with as_os_error(self):
            return ObjectStats.of(obstore.head(storage_of(self.base), self.key))

    def is_file(self) -> bool:
        """Whether there is an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether anything lies below it; a bucket is a folder."""
        return not self.key or any(True for _ in self._below(1))

    def exists(self) -> bool:
        """Whether there is an object, or anything below it."""
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        """There are no links."""
        return False

    def mkdir(self, **_: object) -> None:
        """Nothing has to be made."""

    def iterdir(self) -> Iterator[ObjectPath]:
        """List the objects and folders that lie directly in it, one request a thousand."""
        import obstore

        with as_os_error(self):
            found = obstore.list_with_delimiter(storage_of(self.base), self.key or None)
        for child in (*found["common_prefixes"], *(one["path"] for one in found["objects"])):
            if child != self.key:
                yield ObjectPath(self.base, child)

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Match names, a level for each part of the pattern."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatch.fnmatchcase(child.name, first):
                yield from child.glob(rest) if rest else [child]

    def walk(self) -> Iterator[tuple[ObjectPath, ObjectStats]]:
        """List all objects below it, however deep, in the order of their keys."""
        for meta in self._below():
            if meta["path"] != self.key:  # what some programs write for a folder: "images/"
                yield ObjectPath(self.base, meta["path"]), ObjectStats.of(meta)

    def _below(self, most: int = 1000) -> Iterator[Any]:
        import obstore

        with as_os_error(self):
            listing = obstore.list(storage_of(self.base), self.key or None, chunk_size=most)
            for some in listing:
                yield from some

    def read_bytes(
        self, start: int | None = None, stop: int | None = None, e_tag: str | None = None
    ) -> bytes:
        """Read an object, or those of its bytes.

        Raises
        ------
        OSError
            If there is none, its tag is not `e_tag`, or the storage does not answer.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        if start is not None and start == stop:
            # no range says that
            return b""
        options: Any = {} if start is None else {"range": (start, stop)}
        options |= {"if_match": e_tag} if e_tag else {}
        try:
            with as_os_error(self):
                got = obstore.get(storage_of(self.base), self.key, options=options)
                return bytes(got.bytes())
        except PreconditionError:
            raise OSError(errno.ESTALE, "it has changed meanwhile", str(self)) from None

    def read_with_stats(self, largest: int) -> tuple[bytes, ObjectStats]:
        """Read an object of at most so many bytes, and what the storage says of these very bytes.

        Raises
        ------
        OSError
            If there is none, it is larger, or the storage does not answer.
        """
        import obstore

        with as_os_error(self):
            answer = obstore.get(storage_of(self.base), self.key)
            stats = ObjectStats.of(answer.meta)
            if stats.st_size > largest:
                raise OSError(f"too large: {stats.st_size:,} bytes")
            return bytes(answer.bytes()), stats

    def write_bytes(self, data: bytes, *, e_tag: str | None = None, new: bool = False) -> str:
        """Write an object whole, and return its tag.

        A request that is repeated because its answer was lost finds its own object: that is taken
        for its success.

        Parameters
        ----------
        data : bytes
        e_tag : write only in the place of the object with this tag
        new : write only where there is none

        Raises
        ------
        FileExistsError
            If another object is there than `e_tag` or `new` says.
        OSError
            If the storage does not take it.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotModifiedError, PreconditionError

        mode: Any = "create" if new else {"e_tag": e_tag} if e_tag else "overwrite"
        # parts cannot be written on a condition
        parts = False if new or e_tag else None
        try:
            with as_os_error(self):
                put = obstore.put(
                    storage_of(self.base), self.key, data, mode=mode, use_multipart=parts
                )
        except (AlreadyExistsError, NotModifiedError, PreconditionError):
            there, stats = self.read_with_stats(sys.maxsize)
            if there != data:
                said = "another process has written it meanwhile"
                raise FileExistsError(errno.EEXIST, said, str(self)) from None
            return str(stats.e_tag)
        return str(put["e_tag"])

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete an object; the storage does not say whether there was one."""
        import obstore

        try:
            with as_os_error(self):
                obstore.delete(storage_of(self.base), self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_all(self) -> None:
        """Delete all objects below it, its ``zarr.json`` first, by which a group is found."""
        import obstore

        (self / "zarr.json").unlink(missing_ok=True)
        keys = [path.key for path, _ in self.walk()]
        with as_os_error(self):
            for start in range(0, len(keys), 1000):
                obstore.delete(storage_of(self.base), keys[start : start + 1000])

    def replace(self, target: ObjectPath) -> None:
        """Copy all objects below it to another place, its ``zarr.json`` last, and delete them.

        Whoever finds the ``zarr.json`` of a group or an array there finds all of it.
        """
        import obstore

        objects = [path for path, _ in self.walk()]
        head = f"{self.key}/zarr.json"
        with as_os_error(self):
            for path in sorted(objects, key=lambda one: one.key == head):
                there = target / path.key.removeprefix(self.key).lstrip("/")
                obstore.copy(storage_of(self.base), path.key, there.key)
        self.remove_all()


# A place that is read, and that a store may lie in.
Place = Path | ObjectPath


def place(where: str | os.PathLike[str] | ObjectPath) -> Place:
    """Give a path, or of a URL of object storage a place there.

    Raises
    ------
    FxError
        If obstore is not installed, or the URL is none of a place, or has a password in it.
    """
    if isinstance(where, ObjectPath):
        return where
    text = os.fspath(where)
    # a path has lost one of two slashes
    found = re.match(rf"({'|'.join(SCHEMES)}):/+(?=.)", text)
    if not found:
        return Path(where)
    there = ObjectPath.parse(f"{found[1]}://{text[found.end() :]}")
    if find_spec("obstore") is None:
        raise FxError(
            f"{there} is read with obstore, which is not installed; "
            "install the extra: pip install 'fx-images[s3]'"
        )
    return there


def on_this_machine(path: Path) -> Path:
    """Give a path back; raises FxError where it is the URL of another place."""
    if remote(where := place(path)):
        raise FxError(f"{where} is on object storage; give a folder of this machine")
    return path


def move(source: Place, target: Place) -> None:
    """Put a folder in another place of the same disk or bucket, where nothing lies."""
    source.replace(target)  # type: ignore[arg-type]  # both are of one kind


def remote(where: object) -> bool:
    """Whether a place is on object storage."""
    return isinstance(where, ObjectPath)


def _tidy(key: str) -> str:
    parts: list[str] = []
    for part in key.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


@lru_cache(256)
def storage_of(base: str, key: str = "") -> Any:
    """Open a bucket, or what lies below a key of it, with obstore."""
    from obstore.store import from_url

    return from_url(
        f"{base}/{quote(key)}",
        # a server of one's own may speak HTTP alone
        client_options={"allow_http": True, "timeout": TIMEOUT},
        # the time decides: ten repetitions, as many as there are by default, may take two seconds
        retry_config={"retry_timeout": RETRY, "max_retries": 1000, "backoff": BACKOFF},
    )


@contextmanager
def as_os_error(where: object) -> Iterator[None]:
    """Raise what obstore raises as OSError, in one line and with the place's name.

    But for what a condition of a write has refused, which is raised as it is.
    """
    from obstore import exceptions

    conditions = exceptions.AlreadyExistsError, exceptions.NotModifiedError
    try:
        yield
    except (*conditions, exceptions.PreconditionError, FxError):
        raise
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "no such object, or no such bucket", str(where)
        ) from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise StorageDenied(errno.EACCES, "the storage denies access", str(where)) from error
    except (exceptions.BaseError, ValueError) as error:
        # behind it stands obstore's record of the request
        said = " ".join(str(error).partition("Debug source")[0].split())
        # of a listing, obstore does not tell them apart
        if "403 Forbidden" in said:
            raise StorageDenied(errno.EACCES, "the storage denies access", str(where)) from error
        if "NoSuchBucket" in said:
            raise FileNotFoundError(errno.ENOENT, "no such bucket", str(where)) from None
        if "invalid path: " in said:  # of a listing: it is obstore's limit
            failed = f"{said.partition('invalid path: ')[2]}; rename or delete that object"
            raise StorageFailure(errno.EINVAL, failed, str(where)) from error
        failed = f"the storage does not answer as it should ({said[-200:]})"
        raise StorageFailure(errno.EIO, failed, str(where)) from error


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
