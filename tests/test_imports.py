"""Imports: what takes long to import is there only where it is used."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fx
from extract.store import FeatureStore

COMPILER = {"torch._dynamo"}
PACKAGES = {
    "import extract.backbones as b; b.load_backbone('efficientnet_lite0')": COMPILER,
    "import extract.backbones as b; b.load_backbone('mobilenet_v2', weights='random')": COMPILER,
    "import extract.backbones as b; b.load_backbone('efficientnet_lite0', channels=1)": COMPILER,
    # heads are fitted and their features read without a network
    "import extract.errors, extract.files, extract.registry": {"torch", "pyarrow", "zarr"},
    "import extract.images": {"torch", "zarr", "joblib", "scipy"},
    "import extract.store": {"torch", "joblib", "scipy"},
    # skops imports all of scikit-learn
    "import heads.kinds, heads.metrics": {"numpy", "sklearn"},
    "import heads.files, heads.limits, heads.plots": {"torch", "skops", "matplotlib", "pandas"},
    # what `fx compare --help` lists
    "from fx.comparison import STRATEGIES; STRATEGIES['finetune']": {"numpy", "pyarrow", "PIL"},
    "import finetune.finetuning": {"torch._dynamo", "skops", "matplotlib.pyplot"},
}


@pytest.mark.parametrize("code", PACKAGES)
def test_what_takes_long_to_import_is_left_out(code: str) -> None:
    told = f"{code}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert not PACKAGES[code] & set(run.stdout.split())


def test_the_compiler_can_be_used_afterwards() -> None:
    code = (
        "import extract.backbones as b; b.load_backbone('efficientnet_lite0'); import torch;"
        "quick = torch.compile(lambda x: x + 1, backend='eager');"
        "print(quick(torch.ones(1)).item(), torch.compiler.disable.__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["2.0", "torch.compiler"]


def test_a_head_is_fitted_without_torch(store: FeatureStore, tmp_path: Path) -> None:
    words = ["fx", "fit-head", "logreg", str(store.path), "--out", str(tmp_path)]
    code = (
        f"import atexit, sys; sys.argv = {words!r}\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from fx.commands.app import main\n"
        "main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "saved in" in run.stdout, run.stderr
    loaded = set(run.stderr.split())
    assert "sklearn" in loaded
    heavy = {"torch", "torchvision", "skops", "matplotlib.pyplot", "pandas", "jinja2"}
    assert not loaded & {*heavy, "huggingface_hub.hf_api"}


def test_the_package_says_what_it_has_and_imports_none_of_it() -> None:
    code = "import fx, sys; print(fx.__version__, *dir(fx)); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, loaded = run.stdout.splitlines()
    assert told.split() == [version("fx-images"), *sorted(["__version__", *fx.__all__])]
    assert not set(loaded.split()) & {"torch", "sklearn", "numpy", "typer"}
    assert all(getattr(fx, name) for name in fx.__all__)
