"""Which options make a run another run: every option of every command says so, and is tried."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import typer
from conftest import Said, make_image, training_data, write_classes, write_splits

from extract.backbones import Backbone, load_backbone
from extract.images import Snapshot
from extract.store import FeatureStore
from finetune.finetuning import identity_of
from finetune.settings import FinetuneSettings
from finetune.split import Resources
from fx.commands.app import app
from fx.options import Options
from fx.runs import Run
from fx.stages.extract import extract_images

Fx = Callable[..., Said]
ROOT = Path(__file__).parents[2]


class Option(NamedTuple):
    """An option that makes another run of one, or in ``same`` the reason why it does not.

    ``words`` set it to another value; both runs have the words that are ``given``. ``of`` stands
    in the place of what the command is usually given; for an argument, in that of one run alone.
    """

    words: str = ""
    same: str = ""
    given: str = ""
    of: str = ""


OUTPUT = "says how the result is shown"
SHOWN = {"--json": Option("--json", OUTPUT), "--debug": Option("--debug", OUTPUT)}
KEPT = {
    **SHOWN,
    "--fresh": Option("--fresh", "repeats the same"),
    "--seed": Option("--seed 1"),
    "--near-copies": Option("--near-copies warn"),
    "--out": Option("--out elsewhere", "is where it lies"),
}
# what images there are, with which labels and splits: all of it is in the snapshot
READING = {
    "images": Option(of="others"),
    "--layout": Option("--layout classes", of="splits"),
    "--path-column": Option("--path-column path2", of="data/table.csv"),
    "--label-column": Option("--label-column label2", of="data/table.csv"),
    "--split-column": Option("--split-column split2", of="data/table.csv"),
    "--group-column": Option("--group-column group2", of="data/table.csv"),
    "--root": Option("--root others", of="data/table.csv"),
    "--min-images": Option("--min-images 9"),
    # an image whose features are there is not decoded again
    "--max-image-mb": Option("--max-image-mb 1 --store limited.zarr"),
    "--split-seed": Option("--split-seed 1"),
}
NETWORK = {
    "--backbone": Option("--backbone efficientnet_lite0"),
    "--weights": Option("--weights small.pt"),
    "--size": Option("--size 48"),
    "--channels": Option("--channels 1"),
    "--precision": Option("--precision bf16"),
}
EXTRACTION = {
    **READING,
    **NETWORK,
    "--store": Option("--store another.zarr", "is where features lie; what they are counts"),
    "--device": Option("--device cpu", "auto comes to it; see the test of devices"),
}
FEW = "chooses among cells, each of which has a folder of its own"
JUDGED = "is of the report, which is made anew from the cells"
COMMANDS: dict[str, dict[str, Option]] = {
    # what is there already is not computed again
    "extract": {
        **EXTRACTION,
        **SHOWN,
        "--layer": Option("--layer features.2"),
        "--crops": Option("--crops 5"),
        "--dtype": Option("--dtype float16 --store halves.zarr"),
        "--engine": Option("--engine torch", "rows agree to 1e-3; which are there already stay"),
        "--batch-size": Option("--batch-size 3", "rows agree to 1e-3, as of engines"),
        "--snapshot": Option("--snapshot mine", "names it"),
        "--strict": Option("--strict", "only fails"),
        "--rehash": Option("--rehash", "looks at files again that are the same"),
        "--cluster": Option("--cluster ray", "is where they are computed, by the same engine"),
    },
    "fit-head": {
        **KEPT,
        "kind": Option(of="centroid heads.zarr"),
        "store": Option("", "is known by what it holds", of="svm copy.zarr"),
        **NETWORK,
        "--layer": Option("--layer features.2"),
        "--crops": Option("--crops 5"),
        "--features": Option("--features small_cnn,efficientnet_lite0"),
        "--snapshot": Option("--snapshot other"),
        "--kernel": Option("--kernel linear"),
        "--normalize": Option("--normalize l2"),
        "--class-weight": Option("--class-weight balanced"),
        "--c": Option("--c 3"),
        "--folds": Option("--folds 3"),
        "--audit": Option("--audit"),
        "--per-class": Option("--per-class", OUTPUT),
    },
    "finetune": {
        **EXTRACTION,
        **KEPT,
        "--unfreeze": Option("--unfreeze 2"),
        "--from-scratch": Option("--from-scratch"),
        "--recipe": Option("--recipe keras-guide"),
        "--epochs": Option("--epochs 3"),
        "--learning-rate": Option("--learning-rate 1e-4"),
        "--layer-decay": Option("--layer-decay 0.5"),
        "--label-smoothing": Option("--label-smoothing 0"),
        "--dropout": Option("--dropout 0"),
        "--bn": Option("--bn train"),
        "--augment": Option("--augment course"),
        "--mix": Option("--mix mixup"),
        "--views": Option("--views 3", given="--augment course"),
        "--class-weight": Option("--class-weight balanced"),
        "--cache-limit": Option("--cache-limit 200KB", given="--augment course"),
        "--batch-size": Option("--batch-size 16"),
        "--micro-batch": Option("--micro-batch 8"),
        "--engine": Option("--engine torch"),
        "--log-to": Option("--log-to tensorboard", "copies figures elsewhere"),
        "--per-class": Option("--per-class", OUTPUT),
    },
    "compare": {
        **EXTRACTION,
        **KEPT,
        "--sizes": Option("--sizes 8", FEW),
        "--strategies": Option("--strategies knn", FEW),
        "--seeds": Option("--seeds 1", FEW),
        "--budget": Option("--budget 30m", FEW),
        "--metric": Option("--metric log-loss", JUDGED),
        "--prefer": Option("--prefer best", JUDGED),
        "--wanted": Option("--wanted 0.9", JUDGED),
        "--log-to": Option("--log-to tensorboard", "copies figures elsewhere"),
        "--dry-run": Option("", "measures nothing"),
        "--epochs": Option("--epochs 3"),
        "--class-weight": Option("--class-weight balanced"),
        "--batch-size": Option("--batch-size 16"),
        "--engine": Option("--engine torch"),
    },
}
# commands that keep nothing by which they would be spared another time, or that run others
ALWAYS_ANEW = {
    *("demo", "sample", "backbones", "advise", "predict", "export", "explain", "serve", "runs"),
    *("store ls", "store verify", "store gc"),
}
USUALLY = {"fit-head": "svm heads.zarr", "extract": "data", "finetune": "data", "compare": "data"}
SMALL = "--backbone small_cnn --weights random --size 32 --channels 3"
STORED = "--layer pool --crops 1 --precision fp32 --snapshot mine"


def commands() -> Iterator[tuple[str, typer.core.TyperCommand]]:
    """Every command with its name, those of groups too."""
    waiting = [("", typer.main.get_command(app))]
    while waiting:
        name, command = waiting.pop()
        if isinstance(command, typer.core.TyperGroup):
            waiting += [(f"{name} {one}".strip(), child) for one, child in command.commands.items()]
        else:
            assert isinstance(command, typer.core.TyperCommand)
            yield name, command


def test_every_option_of_every_command_says_whether_it_makes_another_run() -> None:
    found = {name: {one.opts[0] for one in command.params} for name, command in commands()}
    assert found.keys() == COMMANDS.keys() | ALWAYS_ANEW
    assert {name: found[name] for name in COMMANDS} == {
        name: set(options) for name, options in COMMANDS.items()
    }


def test_identities_are_made_in_one_place_for_what_is_kept() -> None:
    makers = {
        str(file.relative_to(ROOT / "fx"))
        for file in (ROOT / "fx").rglob("*.py")
        if re.search(r"\bRun\.of\(", file.read_text(encoding="utf-8"))
    }
    stages = {"stages/fit_head.py", "stages/finetune.py"}
    assert makers == stages | {"comparison/networks.py", "comparison/comparison.py"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders and a table of images, a file of weights, and a store for heads, with its copy."""
    root = tmp_path_factory.mktemp("identity")
    write_classes(root / "data", per_class=8, classes=("a", "b", "c"))
    write_classes(root / "data", per_class=12)
    make_image(0, 77, size=700).save(root / "data" / "a" / "large.png")
    write_splits(root / "splits", per_class=12)
    files = sorted(file.relative_to(root / "data") for file in root.glob("data/[ab]/0*.png"))
    lines = ["path,path2,label,label2,split,split2,group,group2"]
    for number, file in enumerate(files):
        # images of other bytes, by the same names
        other = root / "others" / file
        other.parent.mkdir(parents=True, exist_ok=True)
        make_image(number, 5000 + number).save(other)
        first, second = (("test", "train", "train")[(number // 2 + shift) % 3] for shift in (0, 1))
        label, another = file.parent.name, "xy"[number // 2 % 2]
        cells = file, files[-number], label, another, first, second, number, number // 2
        lines.append(",".join(map(str, cells)))
    (root / "data" / "table.csv").write_text("\n".join(lines))
    weights = load_backbone("small_cnn", weights="random", seed=5).module.state_dict()
    torch.save(weights, root / "small.pt")
    small = Options(
        store=root / "heads.zarr", backbone="small_cnn", weights="random", size=32, channels=3
    )
    for folder, changed in (
        ("data", {"backbone": "efficientnet_lite0"}),
        ("data", {"weights": str(root / "small.pt")}),
        ("data", {"size": 48}),
        ("data", {"channels": 1}),
        ("data", {"precision": "bf16"}),
        ("data", {"layers": ("features.2",)}),
        ("data", {"crops": 5}),
        ("others", {"snapshot": "other"}),
        ("data", {"snapshot": "mine"}),
    ):
        options = dataclasses.replace(small, **changed)
        extract_images(root / folder, options, begin=lambda what: lambda done, total: None)
    shutil.copytree(root / "heads.zarr", root / "copy.zarr")
    return root


@pytest.fixture(scope="module")
def known() -> dict[str, object]:
    """What commands are known by, once they were asked for it."""
    return {}


class RunFound(Exception):
    """Ends a command once its run is known."""


@pytest.fixture
def identify(
    place: Path, fx: Fx, known: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], object]:
    """Give what tells a command's result from others: its run, or features and snapshot."""
    monkeypatch.chdir(place)
    make_run, found = Run.of, list[str]()

    def stop(*arguments: object, **settings: object) -> Run:
        found.append(make_run(*arguments, **settings).directory.name)
        raise RunFound

    def of_extraction(words: str) -> object:
        said = fx(*words.split(), *({"--json"} - {*words.split()}))
        assert said.status == 0, said.err
        answer = json.loads(said.out)
        store = FeatureStore(answer["store"])
        snapshot = Snapshot.from_parquet(*store.read_snapshot(answer["snapshot"]))
        keys = [row.key for row in snapshot.rows if row.split]
        return store.open_set(answer["spec"]).digest(keys), snapshot.fingerprint

    def of_run(words: str) -> object:
        monkeypatch.setattr(Run, "of", stop)
        with suppress(RunFound):  # with --debug it comes here
            fx(*words.split())
        (name,) = found
        found.clear()
        return name

    def of_command(words: str) -> object:
        if words not in known:
            known[words] = (of_extraction if words.startswith("extract") else of_run)(words)
        return known[words]

    return of_command


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name, options in COMMANDS.items() for option in options]
)
def test_an_option_makes_another_run_or_does_not(
    name: str, option: str, identify: Callable[[str], object]
) -> None:
    one = COMMANDS[name][option]
    usual = f"{USUALLY[name]} {SMALL}" + f" {STORED}" * (name == "fit-head")
    other = usual.replace(USUALLY[name], one.of or USUALLY[name], 1)
    first = identify(f"{name} {other if one.words else usual} {one.given}")
    second = identify(f"{name} {other} {one.given} {one.words}")
    assert (first == second) == bool(one.same)


@pytest.mark.parametrize(
    ("usual", "given"),
    [
        (
            f"finetune data {SMALL}",
            "--unfreeze 1 --recipe default --epochs 24 --learning-rate 3e-4 --layer-decay 0.7 "
            "--label-smoothing 0.1 --dropout 0.2 --bn inference --augment auto --views 3 "
            "--cache-limit 5MB --batch-size 32 --micro-batch 32 --device cpu --engine openvino",
        ),
        (
            f"finetune data {SMALL} --from-scratch",
            "--unfreeze all --bn train --augment none --views 3 --cache-limit 5MB --engine torch",
        ),
        (
            f"finetune data {SMALL} --unfreeze all --augment course",
            "--views 3 --cache-limit 5MB --engine torch --micro-batch 40",
        ),
        (f"compare data {SMALL}", "--device cpu --engine openvino"),
        (f"fit-head svm heads.zarr {SMALL} {STORED}", "--kernel rbf --normalize standard"),
        (f"fit-head knn heads.zarr {SMALL} {STORED}", "--kernel linear --folds 5 --seed 0"),
    ],
)
def test_what_it_comes_to_anyway_makes_no_other_run(
    usual: str, given: str, identify: Callable[[str], object]
) -> None:
    assert identify(f"{usual} {given}") == identify(usual)


def test_a_split_that_was_given_is_another_than_the_same_one_by_hash(
    place: Path, tmp_path: Path
) -> None:
    store = FeatureStore(place / "heads.zarr")
    snapshot = Snapshot.from_parquet(*store.read_snapshot("mine"))
    given = dataclasses.replace(snapshot, split_seed=1)
    assert given.fingerprint == snapshot.fingerprint
    first, second = (Run.of(tmp_path, "run", one, []) for one in (snapshot, given))
    assert first != second


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_precision_makes_another_run_where_it_is_not_what_auto_comes_to(
    has_bf16: bool, identify: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # it extracts in fp32, and trains in bf16 where the processor multiplies it
    monkeypatch.setattr("extract.engines.devices._multiplies_bf16", lambda device: has_bf16)
    for name in ("finetune", "compare"):
        found = {
            identify(f"{name} data {SMALL} --precision {one} --out {has_bf16}")
            for one in ("auto", "fp32", "bf16")
        }
        assert len(found) == 2 + has_bf16


def test_a_number_of_numpy_is_the_same_number(place: Path, tmp_path: Path) -> None:
    store = FeatureStore(place / "heads.zarr")
    snapshot = Snapshot.from_parquet(*store.read_snapshot("mine"))
    first, second = (Run.of(tmp_path, "run", snapshot, [], seed=one) for one in (3, np.int64(3)))
    assert first == second


def test_the_kind_of_device_is_in_the_identity_of_a_training(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    settings = FinetuneSettings(unfreeze="all", augment="none")
    found = [
        identity_of(
            backbone, training_data(store), settings, Resources(torch.device(kind), tmp_path)
        )
        for kind in ("cpu", "cuda")
    ]
    assert [one.pop("device") for one in found] == ["cpu", "cuda"]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("usual", "changed"),
    [
        ("--augment none", "--precision bf16"),
        ("--augment none", "--precision fp32"),
        ("--augment none", "--engine torch"),
        ("--augment course", "--cache-limit 200KB"),
    ],
)
def test_what_was_run_before_changes_no_run_of_other_settings(
    usual: str, changed: str, place: Path, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)

    def trained(words: str, out: str) -> dict:
        where = ["--out", tmp_path / out, "--store", tmp_path / "f.zarr", "--json"]
        usual_words = f"finetune data {SMALL} --unfreeze 1 --epochs 2 {words}".split()
        said = fx(*usual_words, *where)
        assert said.status == 0, said.err
        answer = json.loads(said.out)
        return answer | {"name": Path(answer.pop("path")).name}

    first, second = trained(usual, "both"), trained(f"{usual} {changed}", "both")
    alone = trained(f"{usual} {changed}", "alone")
    assert first["name"] != second["name"] == alone["name"]
    assert [second[key] for key in ("history", "log_loss")] == [
        alone[key] for key in ("history", "log_loss")
    ]
    assert trained(usual, "both") == first
