"""A model behind HTTP: images in, labels and probabilities out."""

from importlib.util import find_spec

from extract.errors import FxError

NEEDED = ("fastapi", "prometheus_client", "python_multipart", "uvicorn")


def check_installed() -> None:
    """Raise FxError where a package of the extra ``serve`` is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise FxError(
            f"serving takes {', '.join(missing)}, not installed here: "
            "pip install 'fx-images[serve]'"
        )
