"""Untrusted JSON: it is what it is declared to be, or there is one error in one line."""

import json
import math
from typing import Any, TypeVar

import msgspec

from extract.files.durable import read_regular
from extract.files.objects import Place

# bytes: the confusion of 5,000 classes, a number a line
LARGEST_RECORD = 2**28
DEEPEST = 32

Record = TypeVar("Record")


def read_record(path: Place, kind: type[Record]) -> Record:
    """Read a file of JSON as a type, such as a msgspec structure.

    Raises
    ------
    OSError
        If it cannot be opened, is no regular file, or is larger than ``LARGEST_RECORD``.
    ValueError
        If it is no JSON, or not of that type; it says where.
    """
    return decoded(read_regular(path, LARGEST_RECORD), kind)


def decoded(data: bytes | str, kind: type[Record]) -> Record:
    """Decode JSON as a type; raises ValueError as ``read_record`` does."""
    data = data.encode() if isinstance(data, str) else data
    # an empty list has two bytes there and 64 in memory
    if data.count(b"[") + data.count(b"{") > len(data) // 16 + 10_000:
        raise ValueError("too many lists")
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError as error:
            # a folder's name, and so a label, may have any bytes; msgspec takes no halves of pairs
            if "surrogate" not in str(error):
                raise
        plain = json.loads(data, parse_constant=_finite, parse_float=_finite)
        return msgspec.convert(plain, type=kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_depth(record: dict[str, Any]) -> None:
    """Raise ValueError where lists and dictionaries lie in each other more than 32 times."""
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        within = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for one in within for inner in one if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is no finite number")
    return number
