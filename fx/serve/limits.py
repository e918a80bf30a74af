"""What a request may take, and the images in its body, read within that."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from typing import BinaryIO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from extract.errors import FxError

MB = 2**20
BODIES = 8  # of the largest size, that are in memory at once
MOST_FIELDS = 64  # of a form, that are no files
AGAIN = {"Retry-After": "1"}
FORM = "multipart/form-data"


@dataclass(frozen=True)
class Limits:
    """From where on requests are refused.

    Attributes
    ----------
    request_mb : 2**20 bytes of a request's body
    images : in one request
    queue : images of all requests that are under way
    timeout : seconds for a body to arrive, and then for its images to be classified
    connections : that are open at once
    """

    request_mb: int = 32
    images: int = 64
    queue: int = 512
    timeout: int = 30
    connections: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise FxError(f"`{field.name}` must be at least 1; got {value}")


@dataclass(frozen=True)
class Upload:
    """A file of a request.

    Attributes
    ----------
    name : as the client calls it; empty where it does not
    file : in memory
    """

    name: str
    file: BinaryIO


class _Form(MultiPartParser):
    spool_max_size = 0  # never on a disk: all bodies together are bounded


class Bodies:
    """Reads requests' bodies, which together take no more than ``BODIES`` of the largest size."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most = limits.request_mb * MB
        self._held = 0

    @asynccontextmanager
    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Give the files of a form, or the body itself where it is an image, for a while.

        Raises
        ------
        HTTPException
            400 where the form is damaged, 408 where the body is not there in time, 413 of too many
            bytes or files, 415 of what is neither a form nor an image, 422 without a file, 503
            where the bodies of other requests leave no room.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != FORM and not kind.startswith("image/"):
            raise HTTPException(
                415, f"the body must be {FORM} or image/*; got {kind or 'no content type'}"
            )
        if int(request.headers.get("content-length", 0)) > self._most:
            raise self._too_large()
        taken = 0

        async def chunks() -> AsyncGenerator[bytes]:
            nonlocal taken
            async for chunk in request.stream():
                taken += len(chunk)
                self._held += len(chunk)
                if taken > self._most:
                    raise self._too_large()
                if self._held > BODIES * self._most:
                    raise HTTPException(503, "too many large requests at once", AGAIN)
                yield chunk

        try:
            try:
                async with asyncio.timeout(self._limits.timeout):
                    if kind == FORM:
                        found = await self._files(request, chunks())
                    else:
                        whole = b"".join([chunk async for chunk in chunks()])
                        found = [Upload("", io.BytesIO(whole))]
            except TimeoutError:
                seconds = self._limits.timeout
                raise HTTPException(408, f"the body was not there within {seconds} s") from None
            except ClientDisconnect:
                raise HTTPException(400, "the body ends too early") from None
            yield found
        finally:
            self._held -= taken

    async def _files(self, request: Request, chunks: AsyncGenerator[bytes]) -> list[Upload]:
        most = self._limits.images
        form = _Form(request.headers, chunks, max_files=most, max_fields=MOST_FIELDS)
        try:
            parts = (await form.parse()).multi_items()
        except MultiPartException as error:
            if sum(isinstance(part, UploadFile) for _, part in form.items) >= most:
                raise HTTPException(413, f"more than {most} images in a request") from None
            raise HTTPException(400, error.message) from None
        files = [part for _, part in parts if isinstance(part, UploadFile)]
        # browsers send an empty part where no file is chosen
        files = [file for file in files if file.filename or file.size]
        if not files:
            raise HTTPException(422, "no file in the form: parts need a filename")
        return [Upload(file.filename or "", file.file) for file in files]

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body has more than {self._limits.request_mb} MB")
