"""Importing OpenVINO and NNCF without ``openvino_telemetry``.

It tells a server of Google's which networks are converted, for each from a process that it forks:
nobody has asked for that, and it would outlive a command that is interrupted.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Let what is imported here find it not installed; they have stand-ins that do nothing."""
    before = {_NAME: sys.modules[_NAME]} if _NAME in sys.modules else {}
    sys.modules[_NAME] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_NAME]
        sys.modules.update(before)
