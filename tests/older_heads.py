"""Heads on disk as older versions wrote them: scikit-learn's objects, by skops."""

import hashlib
import json
from pathlib import Path

import skops.io

from heads.files import save_head
from heads.head import Head


def save_older_head(head: Head, directory: Path, model: object = None) -> None:
    """Save a head as format 3 was, with another model where one is given."""
    save_head(head, directory)
    (directory / "head.safetensors").unlink()
    data = skops.io.dumps(head.pipeline if model is None else model)
    (directory / "head.skops").write_bytes(data)
    record = json.loads((directory / "head.json").read_text())
    record |= {"format": 3, "protocol": None, "model_sha256": hashlib.sha256(data).hexdigest()}
    (directory / "head.json").write_text(json.dumps(record))
