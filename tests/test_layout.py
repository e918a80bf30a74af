"""The packages' walls, as far as the import contracts of pyproject.toml cannot say them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("extract", "heads", "finetune", "fx")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
MAX_ENTRIES = 14
# needed by `fx fit-head`, which does not wait for torch
TORCH_FREE = ("extract/errors.py", "extract/registry.py", "extract/files", "extract/store", "heads")


def dotted(path: Path) -> str:
    """A module's name."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def package_of(path: Path) -> str:
    """The name of the package that a module is in, or that it is."""
    return dotted(path.parent / "__init__.py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Modules that are imported from, and what: all imports of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)


def packages_with_a_front() -> set[str]:
    """Packages whose ``__init__`` has what others may import."""
    fronts = [folder / "__init__.py" for folder in FOLDERS if folder.parent != ROOT]
    return {dotted(path) for path in fronts if "__all__" in path.read_text() or offers(path)}


def offers(path: Path) -> bool:
    """Whether an ``__init__`` imports from its package's own modules."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    modules = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
    return any(module.startswith(f"{dotted(path)}.") for module in modules)


def test_a_sub_package_is_used_through_what_its_init_names() -> None:
    fronts = packages_with_a_front()
    deep = [
        f"{dotted(path)} imports {module}"
        for path in MODULES
        for module, _ in imports(path)
        for front in fronts
        if module.startswith(f"{front}.") and not f"{dotted(path)}.".startswith(f"{front}.")
    ]
    assert not deep


def test_no_private_name_is_imported() -> None:
    private = [
        f"{dotted(path)} imports {name} from {module}"
        for path in MODULES
        for module, name in imports(path)
        if module.split(".")[0] in ROOMS
        and name.startswith("_")
        and not name.startswith("__")
        # a private module of its own package is no private name
        and module != package_of(path)
    ]
    assert not private


@pytest.mark.parametrize("folder", FOLDERS, ids=dotted)
def test_a_folder_is_seen_at_a_glance(folder: Path) -> None:
    entries = {path.name for path in folder.iterdir()} - {"__init__.py", "__pycache__"}
    assert len(entries) <= MAX_ENTRIES


def test_every_folder_is_a_package() -> None:
    assert all((folder / "__init__.py").exists() for folder in FOLDERS)


def test_the_tests_folders_are_those_of_the_packages() -> None:
    folders = [file.parent.relative_to(ROOT / "tests") for file in ROOT.glob("tests/*/**/*.py")]
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()]


def test_what_a_head_needs_imports_no_torch() -> None:
    free = [path for path in MODULES if f"{path.relative_to(ROOT)}".startswith(TORCH_FREE)]
    # imported where a head of an older version is met: skops brings all that scikit-learn knows
    free.remove(ROOT / "heads" / "files" / "older.py")
    code = f"import sys, {', '.join(map(dotted, free))}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
