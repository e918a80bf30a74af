"""Small images inside a page."""

from __future__ import annotations

import base64
import hashlib
import io

from extract.files import Place
from extract.images import UnreadableImage, decode, read_image

NO_IMAGE = "data:,"
LARGEST_FILE = 2**32  # bytes
ANY_MB = 2**20


def thumbnail(root: str | Place, path: str, key: bytes, pixels: int) -> str:
    """Make a data URI of an image of a snapshot's root, at most so many pixels a side.

    An empty one where it cannot be read any more, or its bytes are no longer those of the key.
    """
    try:
        data = read_image(root, path, LARGEST_FILE)
        if hashlib.sha256(data).digest() != key:
            return NO_IMAGE
        # these very bytes have been let in before
        image = decode(data, at_least=pixels, max_image_mb=ANY_MB)
    except (OSError, UnreadableImage):
        return NO_IMAGE
    image.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
