"""Memory that may still be taken: the machine's, or less where a container or a job is limited."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from fx.stages import memory

MIB = 2**20


def group(folder: Path, limit: str, used: int, files: int, *, version: int = 2) -> None:
    """Write a control group's files as the kernel does."""
    names = memory._V2 if version == 2 else memory._V1
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\nslab 7\n")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB; the folder of the groups' files."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUP_FILES", tmp_path / "fs")
    machine = SimpleNamespace(available=65_536 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    return tmp_path / "fs"


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [
        (2, "0::/system.slice/job_1", "system.slice/job_1"),
        (1, "9:name=systemd:/\n4:cpu,memory:/docker/12", "memory/docker/12"),
        # the limit is that of a group around it
        (2, "0::/system.slice/job_1/step_0:1", "system.slice/job_1"),
        # of a container that sees its own group as the top one
        (2, "0::/", ""),
        (1, "4:memory:/docker/12", "memory"),
    ],
)
def test_a_containers_limit_counts(
    version: int, line: str, folder: str, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(f"{line}\n")
    group(files / folder, str(8_192 * MIB), 3_000 * MIB, 1_000 * MIB, version=version)
    # what is kept of files can be dropped
    assert memory.free_memory() == 6_192 * MIB
    group(files / folder, str(8_192 * MIB), 8_193 * MIB, 0, version=version)
    assert memory.free_memory() == 0


@pytest.mark.parametrize("limit", ["max", str(2**63 - 4096)])
def test_without_a_limit_it_is_the_machines(limit: str, files: Path, tmp_path: Path) -> None:
    assert memory.free_memory() == 65_536 * MIB
    (tmp_path / "cgroup").write_text("0::/system.slice\n")
    group(files / "system.slice", limit, 3_000 * MIB, 0)
    assert memory.free_memory() == 65_536 * MIB


def test_of_this_machine_there_is_some() -> None:
    assert 0 < memory.free_memory() <= psutil.virtual_memory().total
