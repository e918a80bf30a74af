"""Imports: what takes long to import is there only where it is used."""

import subprocess
import sys

import pytest

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
    "import heads": {"torch._dynamo", "skops", "matplotlib.pyplot"},
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
