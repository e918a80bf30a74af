"""Which images are found in folders and tables, with which labels, and what is said of the rest."""

import os
import random
import socket
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from extract.errors import FxError, NoImages
from extract.images import ImageEntry, ImageSource, Reading, find_images
from extract.images.sources import SUFFIXES


def touch(root: Path, *paths: str) -> Path:
    """Write an image, or with another suffix a text, at each path."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg"):
            Image.new("RGB", (2, 2)).save(file, "PNG" if file.suffix == ".png" else "JPEG")
        else:
            file.write_text("something")
    return root


def labels(source: ImageSource) -> dict[str, str | None]:
    return {entry.path: entry.label for entry in source.entries}


def splits(source: ImageSource) -> dict[str, str | None]:
    return {entry.path: entry.split for entry in source.entries}


def one_line(message: str) -> str:
    assert "\n" not in message
    return message


@contextmanager
def nested(name: str, depth: int) -> Iterator[None]:
    """Make folders in folders, be in the innermost, and take all of them away again."""
    for _ in range(depth):
        Path(name).mkdir()
        os.chdir(name)
    try:
        yield
    finally:
        for _ in range(depth):
            os.chdir("..")
            Path(name).rmdir()


def error_of(images: Path | str) -> str:
    with pytest.raises(FxError) as caught:
        find_images(images)
    return one_line(str(caught.value))


def test_a_class_folder_s_name_is_the_label_however_deep_the_image_lies(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/more/and/more/2.png", "dog/1.png")
    source = find_images(tmp_path)
    assert source.kind == "classes"
    assert labels(source) == {"cat/1.png": "cat", "cat/more/and/more/2.png": "cat"} | {
        "dog/1.png": "dog"
    }
    assert {entry.split for entry in source.entries} == {None}
    assert {entry.group for entry in source.entries} == {None}
    assert source.labels == ("cat", "dog")
    assert source.labelled
    assert source.skipped == ()


def test_the_root_is_absolute_and_the_entries_can_be_opened_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "data/cat/1.png")
    monkeypatch.chdir(tmp_path)
    source = find_images("data")
    assert source.root == tmp_path / "data"
    with Image.open(source.root / source.entries[0].path) as image:
        assert image.size == (2, 2)


def test_images_beside_class_folders_have_no_label(tmp_path: Path) -> None:
    source = find_images(touch(tmp_path, "cat/1.png", "loose.png"))
    assert source.kind == "classes"
    assert labels(source) == {"cat/1.png": "cat", "loose.png": None}


def test_a_folder_of_images_is_unlabelled(tmp_path: Path) -> None:
    source = find_images(touch(tmp_path, "b.png", "a.jpg", "notes.txt", "empty/notes.txt"))
    assert source.kind == "unlabelled"
    assert labels(source) == {"a.jpg": None, "b.png": None}
    assert not source.labelled
    assert source.labels == ()


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_of_an_image_is_known_in_either_case(tmp_path: Path, suffix: str) -> None:
    for name in (f"a.{suffix}", f"b.{suffix.upper()}", f"c.tar.{suffix}"):
        (tmp_path / name).write_bytes(b"never opened")
    assert len(find_images(tmp_path).entries) == 3


def test_other_files_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/1.txt", "cat/png", "cat/2.png.bak", "cat/3.svg", "README.md")
    source = find_images(tmp_path)
    assert list(labels(source)) == ["cat/1.png"]
    assert source.skipped == ()


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/a.txt", "cat/B.TXT", "cat/notes", "cat/.hidden.png", "5.png")
    touch(tmp_path, "dog/1.png", ".git/config", "dog/@eaDir/1.png/thumb.jpg", "#recycle/1.png")
    touch(tmp_path, ".fx-sample", "dog/odd.a-suffix that is none", "docs/readme.txt")
    (tmp_path / "empty").mkdir()
    source = find_images(tmp_path)
    assert list(labels(source)) == ["5.png", "cat/1.png", "dog/1.png"]
    assert dict(source.passed_over) == {
        ".txt": 3,
        "without a suffix": 2,
        "hidden": 2,
        "folders of the system": 2,
        "folders without images": 2,
        "images without a label": 1,
    }
    assert source.lost == ()


def test_of_many_kinds_of_other_files_the_commonest_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "a.txt", *(f"a.{n}" for n in range(30)))
    counts = dict(find_images(touch(tmp_path, "b.txt")).passed_over)
    assert counts[".txt"] == 2
    assert len(counts) == 21
    assert counts["of other kinds"] == 11


def test_a_file_s_content_says_what_it_is_where_its_name_does_not(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/P1.txt", "cat/BM.txt")
    (tmp_path / "cat" / "P1.txt").write_text("P1 of three")
    (tmp_path / "cat" / "BM.txt").write_text("BMW and others, with much text behind it")
    for name in ("download", "2.png.bak", "3.jpg_large", "4.HIF"):
        (tmp_path / "cat" / name).write_bytes((tmp_path / "cat" / "1.png").read_bytes())
    source = find_images(tmp_path)
    assert [entry.path[4:] for entry in source.entries] == [
        *("1.png", "2.png.bak", "3.jpg_large", "4.HIF", "download")
    ]
    assert source.passed_over == ((".txt", 2),)
    assert find_images(tmp_path / "cat" / "download").entries[0].path == "download"


def test_classes_of_which_nothing_can_be_opened_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a/cat/1.png", "a/scan/1.dcm", "a/scan/2.dcm", "a/docs/1.pdf")
    (tmp_path / "a" / "gone").mkdir()
    (tmp_path / "a" / "gone" / "1.png").symlink_to("nowhere")
    lost = (
        ("gone", "gone/1.png", "link to nothing"),
        ("scan", "scan/1.dcm", ".dcm files are not read"),
    )
    assert find_images(tmp_path / "a").lost == lost
    touch(tmp_path, "b/train/cat/1.png", "b/train/scan/1.dcm", "b/test/cat/2.png")
    touch(tmp_path, "b/test/lost/1.mp4", "b/train/lost/1.png")
    assert [one[:2] for one in find_images(tmp_path / "b").lost] == [("scan", "train/scan/1.dcm")]
    source = find_images(table(tmp_path / "b", "path,label\ntrain/cat/1.png,cat\n2.png,dog\n"))
    assert source.lost == (("dog", "2.png", "no such file"),)


def test_rows_without_a_label_are_counted_where_others_have_one(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png", "3.png")
    source = find_images(table(tmp_path, "path,label\n1.png,cat\n2.png,\n3.png, \n"))
    assert source.passed_over == (("rows without a label", 2),)
    assert find_images(table(tmp_path, "path,label\n1.png,\n2.png,\n")).passed_over == ()


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/._1.png", "cat/.cache/1.png", ".git/1.png", "__MACOSX/1.png")
    touch(tmp_path, "cat/__MACOSX/1.png")
    assert list(labels(find_images(tmp_path))) == ["cat/1.png"]


def test_a_hidden_folder_may_be_named_itself(tmp_path: Path) -> None:
    touch(tmp_path, ".images/cat/1.png")
    assert list(labels(find_images(tmp_path / ".images"))) == ["cat/1.png"]


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "dev", "val_set"])
def test_folders_called_train_and_test_are_splits(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "train/cat/1.png", f"{name}/cat/2.png", "test/dog/deep/3.png", "README.md")
    source = find_images(tmp_path)
    assert source.kind == "splits"
    assert splits(source) == {
        "train/cat/1.png": "train",
        f"{name}/cat/2.png": "val",
        "test/dog/deep/3.png": "test",
    }
    assert set(labels(source).values()) == {"cat", "dog"}


def test_split_folders_may_stand_alone_or_beside_folders_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.png", "docs/readme.txt")
    (tmp_path / "test").mkdir()
    assert find_images(tmp_path).kind == "splits"


def test_images_in_no_class_folder_of_a_split_have_no_label(tmp_path: Path) -> None:
    source = find_images(touch(tmp_path, "train/cat/1.png", "train/2.png", "test/3.png", "4.png"))
    assert labels(source) == {
        "4.png": None,
        "test/3.png": None,
        "train/2.png": None,
        "train/cat/1.png": "cat",
    }
    assert splits(source)["4.png"] is None
    assert splits(source)["test/3.png"] == "test"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = find_images(touch(tmp_path, "train/1.png", "bus/1.png"))
    assert source.kind == "classes"
    assert source.labels == ("bus", "train")


def test_without_train_the_layout_must_be_said(tmp_path: Path) -> None:
    touch(tmp_path, "test/cat/1.png", "val/cat/1.png")
    assert "`layout=classes`" in error_of(tmp_path)
    source = find_images(tmp_path, Reading(layout="classes"))
    assert source.kind == "classes"
    assert source.labels == ("test", "val")
    with pytest.raises(FxError, match="no folder of training images; it has 'test', 'val'"):
        find_images(tmp_path, Reading(layout="splits"))


@pytest.mark.parametrize(
    ("train", "test", "side"),
    [
        ("Training", "Testing", "test"),
        ("seg_train", "seg_test", "test"),
        ("train_set", "test_set", "test"),
        ("trainset", "testset", "test"),
        ("Train Set", "Test Set", "test"),
        ("train", "dev", "val"),
        ("train", "eval", "test"),
        ("train", "evaluation", "test"),
        ("train2017", "val2017", "val"),
        ("01_train", "02_test", "test"),
        ("train_images", "test_images", "test"),
        ("pets-train", "pets-validation", "val"),
    ],
)
def test_split_folders_have_any_usual_name(
    tmp_path: Path, train: str, test: str, side: str
) -> None:
    touch(tmp_path, f"{train}/cat/1.png", f"{train}/dog/1.png", f"{test}/cat/2.png", "notes/1.txt")
    source = find_images(tmp_path)
    assert source.kind == "splits"
    assert source.labels == ("cat", "dog")
    assert splits(source)[f"{train}/dog/1.png"] == "train"
    assert splits(source)[f"{test}/cat/2.png"] == side


def test_split_folders_in_folders_of_their_own_name_are_entered(tmp_path: Path) -> None:
    touch(tmp_path, "seg_train/seg_train/cat/1.png", "seg_train/seg_train/dog/1.png")
    touch(tmp_path, "seg_test/seg_test/cat/2.png", "seg_test/seg_test/dog/2.png")
    source = find_images(tmp_path)
    assert source.labels == ("cat", "dog")
    touch(tmp_path / "b", "train/train/1.png", "train/bus/1.png", "test/train/2.png")
    assert find_images(tmp_path / "b").labels == ("bus", "train")


UNCERTAIN = {
    "a folder beside splits": ("train/cat/1.png", "test/cat/1.png", "docs/1.png"),
    "a folder beside train": ("train/cat/1.png", "train/dog/1.png", "docs/1.png"),
    "predictions": ("seg_train/cat/1.png", "seg_test/cat/1.png", "seg_pred/1.png"),
    "two alike": ("a_train/cat/1.png", "b_train/cat/1.png", "a_test/cat/1.png"),
    "test alone": ("test/cat/1.png", "test/dog/1.png"),
    "years": tuple(f"{year}/{name}/1.png" for year in (2019, 2020, 2021) for name in "ab"),
    "years, a class missing": (*(f"2019/{n}/1.png" for n in "abc"), "2020/a/1.png", "2020/b/1.png"),
    "classes of splits": tuple(f"{n}/{s}/1.png" for n in "ab" for s in ("train", "test")),
    "an archive's folder": ("cifar/a/1.png", "cifar/b/1.png"),
    "splits without class folders": ("a_train/1.png", "a_test/1.png"),
}


@pytest.mark.parametrize("paths", UNCERTAIN.values(), ids=UNCERTAIN)
def test_folders_that_may_be_splits_or_classes_are_refused(
    tmp_path: Path, paths: tuple[str, ...]
) -> None:
    touch(tmp_path, *paths)
    assert "`layout=classes`" in error_of(tmp_path)
    source = find_images(tmp_path, Reading(layout="classes"))
    assert labels(source) == {path: path.split("/")[0] for path in paths}


def test_what_lies_beside_splits_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/1.png", "test/cat/1.png", "docs/1.png", "docs/more/2.png")
    assert "takes 'test', 'train' as splits and passes over 'docs'" in error_of(tmp_path)
    source = find_images(tmp_path, Reading(layout="splits"))
    assert set(splits(source)) == {"train/cat/1.png", "test/cat/1.png"}
    assert source.passed_over == (("images in no split", 2),)
    assert source.lost == ()


@pytest.mark.parametrize(
    "paths",
    [
        ("bullet train/1.png", "tram/1.png"),
        ("bullet train/japan/1.png", "tram/japan/1.png"),
        ("test tube/1.png", "flask/1.png"),
        ("tests/1.png", "trainer/1.png", "valid_until/1.png"),
        ("cat/images/1.png", "dog/images/1.png"),
        ("cat/a/1.png", "cat/b/1.png", "dog/c/1.png", "dog/d/1.png"),
        ("train/1.png", "bus/1.png"),
    ],
)
def test_classes_may_have_such_names_and_folders(tmp_path: Path, paths: tuple[str, ...]) -> None:
    source = find_images(touch(tmp_path, *paths))
    assert labels(source) == {path: path.split("/")[0] for path in paths}


def test_small_classes_are_left_out_before_any_image_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "a/2.png", "b/1.png", "3.png")
    source = find_images(tmp_path, Reading(min_images=2))
    assert source.labels == ("a", "b")
    assert list(labels(source.without_small_classes()).values()) == [None, "a", "a"]
    with pytest.raises(FxError, match="`min_images` must be at least 0"):
        Reading(min_images=-1)


def test_a_layout_is_of_folders(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    with pytest.raises(FxError, match="`layout` is of folders"):
        find_images(table(tmp_path, "path\n1.png\n"), Reading(layout="classes"))
    with pytest.raises(FxError, match="`layout` must be splits or classes; got 'both'"):
        Reading(layout="both")


def test_splits_of_a_table_have_any_usual_name(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png", "3.png")
    text = "path,split\n1.png,Training\n2.png,dev\n3.png,test_set\n"
    assert list(splits(find_images(table(tmp_path, text))).values()) == ["train", "val", "test"]
    message = error_of(table(tmp_path, f"path,split\n1.png,train{'1' * 500_000}x\n"))
    assert "unknown split" in message


def test_entries_are_sorted_by_path(tmp_path: Path) -> None:
    touch(tmp_path, "b/10.png", "b/9.png", "a/é.png", "B/1.png", "a.png")
    paths = [entry.path for entry in find_images(tmp_path).entries]
    assert paths == sorted(paths)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    paths=st.sets(
        st.lists(st.sampled_from(["a", "B", "train", "test", "é"]), max_size=3).map("/".join),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_the_order_in_which_files_were_made_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str], seed: int
) -> None:
    def found(order: Iterable[str]) -> tuple[str, tuple[ImageEntry, ...]]:
        root = tmp_path_factory.mktemp("images")
        for path in order:
            (root / path).mkdir(parents=True, exist_ok=True)
            (root / path / "1.png").touch()
        try:
            source = find_images(root)
        except FxError as error:
            return str(error).replace(str(root), ""), ()
        return source.kind, source.entries

    shuffled = sorted(paths)
    random.Random(seed).shuffle(shuffled)
    assert found(sorted(paths)) == found(shuffled)


def test_links_to_images_and_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "elsewhere/deep/2.png")
    data = tmp_path / "data"
    (data / "dog").mkdir(parents=True)
    (data / "cat").symlink_to(tmp_path / "elsewhere")
    (data / "dog" / "3.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    source = find_images(data)
    assert labels(source) == {"cat/1.png": "cat", "cat/deep/2.png": "cat", "dog/3.png": "dog"}
    assert source.skipped == ()


def test_two_links_to_a_folder_are_no_circle(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png")
    (tmp_path / "data").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    source = find_images(tmp_path / "data")
    assert labels(source) == {"cat/1.png": "cat", "dog/1.png": "dog"}
    assert source.skipped == ()


def test_a_circle_of_links_is_entered_once_and_told(tmp_path: Path) -> None:
    touch(tmp_path, "cat/deep/1.png")
    (tmp_path / "cat" / "deep" / "again").symlink_to(tmp_path / "cat")
    (tmp_path / "top").symlink_to(tmp_path)
    source = find_images(tmp_path)
    assert list(labels(source)) == ["cat/deep/1.png"]
    assert source.skipped == (
        ("cat/deep/again", "link to a folder that it lies in"),
        ("top", "link to a folder that it lies in"),
    )


def test_what_cannot_be_opened_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "cat/1.png", "cat/notes.txt")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / "itself").symlink_to(tmp_path / "cat" / "itself")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    os.mkfifo(tmp_path / "cat" / "pipe")
    (tmp_path / "cat" / "device.jpg").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path / "cat")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        source = find_images(tmp_path)
    assert list(labels(source)) == ["cat/1.png"]
    assert source.skipped == (
        ("cat/device.jpg", "not a regular file"),
        ("cat/gone.png", "link to nothing"),
        ("cat/itself", "cannot be read: Too many levels of symbolic links"),
        ("cat/pipe.png", "not a regular file"),
        ("cat/socket.png", "not a regular file"),
    )


def test_a_folder_that_cannot_be_listed_costs_none_of_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "cat/1.png")
    # a path longer than the system takes: permissions would not stop root
    monkeypatch.chdir(tmp_path / "cat")
    name = "d" * 200
    with nested(name, 25):
        source = find_images(tmp_path)
    assert list(labels(source)) == ["cat/1.png"]
    assert len(source.skipped) == 1
    path, reason = source.skipped[0]
    assert path.startswith(f"cat/{name}/{name}")
    assert "File name too long" in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_folder_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "dog").chmod(0)
    try:
        source = find_images(tmp_path)
    finally:
        (tmp_path / "dog").chmod(0o700)
    assert list(labels(source)) == ["cat/1.png"]
    assert source.skipped == (("dog", "folder cannot be read: Permission denied"),)


def test_folders_may_be_nested_deeper_than_python_s_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with nested("d", 1_500):
        Path("1.png").touch()
        try:
            source = find_images(tmp_path)
        finally:
            Path("1.png").unlink()
    assert [len(entry.path) for entry in source.entries] == [3_005]


def test_a_name_that_is_no_utf_8_can_still_be_opened(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 - a path of bytes
    Path(os.fsdecode(folder + b"/\xff.png")).write_bytes(b"here")
    source = find_images(tmp_path)
    (entry,) = source.entries
    assert os.fsencode(entry.path) == b"caf\xe9/\xff.png"
    assert (source.root / entry.path).read_bytes() == b"here"


def test_one_image_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "cat/2.png")
    source = find_images(tmp_path / "cat" / "1.png")
    assert source == ImageSource(
        tmp_path / "cat", "unlabelled", (ImageEntry("1.png", None, None, None),), ()
    )


def test_24_000_files_are_found_in_seconds(tmp_path: Path) -> None:
    for folder in range(24):
        (tmp_path / f"class{folder}").mkdir()
        for number in range(1_000):
            os.close(os.open(tmp_path / f"class{folder}" / f"{number}.jpg", os.O_CREAT))
    begin = time.perf_counter()
    assert len(find_images(tmp_path).entries) == 24_000
    assert time.perf_counter() - begin < 3  # 0.1 on an idle machine


def table(root: Path, text: str, name: str = "images.csv") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def test_a_csv_gives_paths_labels_splits_and_groups(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.png", "x/2.png", "x/3.jpg")
    source = find_images(
        table(
            tmp_path,
            "path,label,split,group,notes\n"
            "x/2.png,dog,test,patient 7,\n"
            "x/1.png,cat,train,patient 3,blurred\n"
            "x/3.jpg,,,,\n",
        )
    )
    assert source.kind == "table"
    assert source.root == tmp_path
    assert source.entries == (
        ImageEntry("x/1.png", "cat", "train", "patient 3"),
        ImageEntry("x/2.png", "dog", "test", "patient 7"),
        ImageEntry("x/3.jpg", None, None, None),
    )
    assert source.skipped == ()


def test_a_parquet_file_says_the_same_as_a_csv(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    csv = table(tmp_path, "path,label,split,group\n1.png,cat,,7\n2.png,,valid,\n")
    parquet.write_table(
        pa.table(
            {
                "group": pa.array([7, None]),
                "path": ["1.png", "2.png"],
                "other": [b"\xff", b"\x00"],
                "label": pa.array(["cat", None]).dictionary_encode(),
                "split": ["", "valid"],
            }
        ),
        tmp_path / "images.PARQUET",
    )
    source = find_images(tmp_path / "images.PARQUET")
    assert source == find_images(csv)
    assert source.entries[1] == ImageEntry("2.png", None, "val", None)


def test_labels_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    names = ["007", "NA", "null", "1e3", "true", "2024-01-01", "été"]
    touch(tmp_path, *(f"{number}.png" for number in range(len(names))))
    rows = "".join(f"{number}.png,{name}\n" for number, name in enumerate(names))
    source = find_images(table(tmp_path, "path,label\n" + rows))
    assert [entry.label for entry in source.entries] == names


def test_labels_of_numbers_in_parquet_become_text(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png", "3.png")
    columns = {"path": ["1.png", "2.png", "3.png"]}
    for values, expected in (
        (pa.array([3, 0, None]), ["3", "0", None]),
        (pa.array([3.0, 0.0, None]), ["3", "0", None]),
        (pa.array([0.5, float("nan"), None]), ["0.5", None, None]),
        (pa.array([True, False, None]), ["True", "False", None]),
        (pa.array([b"cat", b"", None]), ["cat", None, None]),
    ):
        parquet.write_table(pa.table(columns | {"label": values}), tmp_path / "t.parquet")
        source = find_images(tmp_path / "t.parquet")
        assert [entry.label for entry in source.entries] == expected


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.0", "0.0", ""], ["1", "0", None]),
        (["1", "1.0", "2"], ["1", "1", "2"]),
        (["1.0", "1.5", "a"], ["1.0", "1.5", "a"]),
        (["01", "1", "1e0"], ["01", "1", "1e0"]),
    ],
)
def test_integers_that_a_csv_has_as_floats_are_integers(
    cells: list[str], expected: list[str | None], tmp_path: Path
) -> None:
    touch(tmp_path, "0.png", "1.png", "2.png")
    rows = "".join(f"{number}.png,{cell},{cell}\n" for number, cell in enumerate(cells))
    entries = find_images(table(tmp_path, "path,label,group\n" + rows)).entries
    assert [entry.label for entry in entries] == [entry.group for entry in entries] == expected


def test_blanks_and_capitals_in_a_header_and_blanks_around_labels_do_no_harm(
    tmp_path: Path,
) -> None:
    touch(tmp_path, "1.png")
    source = find_images(table(tmp_path, "\ufeffPath , label,Split\n1.png, cat , Train \n"))
    assert source.entries == (ImageEntry("1.png", "cat", "train", None),)


def test_quoted_cells_may_hold_commas_and_line_breaks(tmp_path: Path) -> None:
    touch(tmp_path, "a, b.png")
    source = find_images(table(tmp_path, 'path,label\n"a, b.png","two\nlines, ""one"" label"\n'))
    assert source.entries[0].label == 'two\nlines, "one" label'


def test_a_table_without_labels_is_unlabelled(tmp_path: Path) -> None:
    source = find_images(table(touch(tmp_path, "1.png"), "path\n1.png\n"))
    assert source.kind == "table"
    assert not source.labelled


def test_paths_in_a_table_may_be_absolute(tmp_path: Path) -> None:
    touch(tmp_path, "tables/in/1.png", "out/2.png")
    source = find_images(
        table(
            tmp_path / "tables",
            f"path\n{tmp_path}/tables/in/1.png\n{tmp_path}/out/2.png\n../out/2.png\n",
        )
    )
    assert [entry.path for entry in source.entries] == [
        "../out/2.png",
        f"{tmp_path}/out/2.png",
        "in/1.png",
    ]
    assert all((source.root / entry.path).is_file() for entry in source.entries)


def test_a_file_may_be_spelled_in_several_ways(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.png")
    source = find_images(
        table(tmp_path, f"path,label\nx/1.png,cat\n./x//1.png,cat\n{tmp_path}/x/1.png,cat\n")
    )
    assert source.entries == (ImageEntry("x/1.png", "cat", None, None),)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_tables_of_every_system_say_the_same(
    tmp_path: Path, separator: str, encoding: str, end: str
) -> None:
    touch(tmp_path, "x/1.png", "x/é, 2.png")
    rows = [["notes", "path", "label"], ["", "x/1.png", "Männchen"], ["", '"x/é, 2.png"', "b"]]
    rows += [[], ["", "", ""]]
    text = end.join(separator.join(row) for row in rows) + end
    for name, start in (("t.csv", ""), ("t.tsv", f"sep={separator}{end}")):
        (tmp_path / name).write_bytes((start + text).encode(encoding))
        source = find_images(tmp_path / name)
        assert labels(source) == {"x/1.png": "Männchen", "x/é, 2.png": "b"}
        assert source.columns == (("path", "path"), ("label", "label"))


def test_what_is_not_unicode_is_refused_with_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, "é.png")
    (tmp_path / "t.csv").write_bytes("path,label\né.png,a\né.png,Männchen\n".encode("cp1252"))
    assert "label in row 2 is not UTF-8; save the table as UTF-8" in error_of(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("path,label\né.png,a\n".encode("cp1252"))
    assert labels(find_images(tmp_path / "t.csv")) == {"é.png": "a"}


def test_paths_as_windows_and_people_write_them_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.png", "x/2.png", "x/ 3.png ", "x/a\\4.png")
    rows = "x\\1.png,a\n x/2.png ,a\nx/ 3.png ,a\nx/a\\4.png,a\n.\\x\\1.png ,a\nx\\5.png,a\n"
    source = find_images(table(tmp_path, "path,label\n" + rows))
    assert set(labels(source)) == {"x/1.png", "x/2.png", "x/ 3.png ", "x/a\\4.png"}
    assert source.skipped == (("x\\5.png", "no such file"),)


def test_unicode_forms_of_a_name_are_one_class_and_one_file(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(tmp_path, f"a/{nfc}/1.png", f"a/{nfd}/2.png", "a/b/1.png")
    touch(tmp_path, f"b/train/{nfc}/1.png", f"b/test/{nfd}/2.png")
    for root in ("a", "b"):
        assert nfc in find_images(tmp_path / root).labels
        assert nfd not in find_images(tmp_path / root).labels
    touch(tmp_path, f"c/{nfc}/{nfd}.png")
    for one, two in ((nfc, nfc), (nfd, nfd), (nfd, nfc)):
        text = f"path,label,group\n{one}/{two}.png,{nfd},{nfd}\n{one}/{nfd}.png,{nfc},{nfc}\n"
        source = find_images(table(tmp_path / "c", text))
        assert source.entries == (ImageEntry(f"{nfc}/{nfd}.png", nfc, None, nfc),)


def test_files_whose_names_differ_in_their_unicode_form_are_two(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é") + ".png" for form in ("NFC", "NFD")]
    touch(tmp_path, *names)
    source = find_images(table(tmp_path, "path\n" + "\n".join(names)))
    assert len(source.entries) == 2


@pytest.mark.parametrize(
    "lines",
    [
        ['{0},"cat', "{1},dog", "{2},dog"],
        ['{0},"cat', "{1},dog", '{2},dog"'],
        ['{0},"cat', "{1},dog", '{2},"dog"'],
        ['"{0},cat', "{1},dog", '{2},do"g'],
        ['{0},"cat",x"', "{1},dog,"],
    ],
)
def test_a_quote_that_swallows_rows_is_refused(tmp_path: Path, lines: list[str]) -> None:
    names = ["1.png", "2.png", "3.png"]
    touch(tmp_path, *names)
    text = "path,label,notes\n" if "notes" in lines[-1] else "path,label\n"
    message = error_of(table(tmp_path, text + "\n".join(lines).format(*names) + "\n"))
    assert "row 1" in message


def test_quoted_cells_may_stand_behind_blanks(tmp_path: Path) -> None:
    touch(tmp_path, "a, b.png")
    source = find_images(table(tmp_path, '"label", "path"\n"cat", "a, b.png"\n'))
    assert labels(source) == {"a, b.png": "cat"}


def test_a_quote_within_a_cell_is_a_quote(tmp_path: Path) -> None:
    touch(tmp_path, '5" tube.png')
    source = find_images(table(tmp_path, 'path,label\n5" tube.png,"a ""b"""\n'))
    assert labels(source) == {'5" tube.png': 'a "b"'}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_may_be_named(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "images/1.png", "images/2.png")
    columns = {"File": ["1.png", "2.png"], "Art": ["a", "b"], "path": ["x", "y"]}
    columns |= {"Teil": ["train", "test"], "Tier": ["7", "8"], "label": ["p", "q"]}
    file = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        file.write_text("\n".join(";".join(row) for row in rows))
    else:
        parquet.write_table(pa.table(columns), file)
    reading = Reading(
        path_column="file",
        label_column="Art",
        split_column="teil",
        group_column="Tier",
        root=tmp_path / "images",
    )
    source = find_images(file, reading)
    assert source.root == tmp_path / "images"
    assert source.entries == (
        ImageEntry("1.png", "a", "train", "7"),
        ImageEntry("2.png", "b", "test", "8"),
    )
    assert dict(source.columns) == {
        **{"path": "File", "label": "Art", "split": "Teil", "group": "Tier"}
    }
    with pytest.raises(FxError, match=r"no column 'kind'; it has 'File', .*`label_column`"):
        find_images(file, Reading(path_column="File", label_column="kind"))


def test_what_only_tables_have_is_refused_of_folders(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png")
    for images in (tmp_path, tmp_path / "cat" / "1.png"):
        with pytest.raises(FxError, match="`label_column` is of tables"):
            find_images(images, Reading(label_column="kind"))


def test_rows_of_other_lengths_name_their_row(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    message = error_of(table(tmp_path, "path,label\n1.png,cat,\n1.png\n"))
    assert "row 2 has 1 cells, the header 2" in message


def test_a_path_with_two_labels_is_listed_with_both(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    source = find_images(table(tmp_path, "path,label\n1.png,dog\n1.png,cat\n1.png,dog\n"))
    assert [entry.label for entry in source.entries] == ["cat", "dog"]


def test_a_path_that_is_no_utf_8_is_found_through_a_csv(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).touch()
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff.png,cat\n")
    (entry,) = find_images(tmp_path / "t.csv").entries
    assert os.fsencode(entry.path) == b"\xff.png"


def test_listed_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "folder/notes.txt")
    text = "path,label\n1.png,cat\ngone.png,cat\ngone.png,dog\nfolder,dog\n1.png/2.png,dog\n"
    source = find_images(table(tmp_path, text))
    assert labels(source) == {"1.png": "cat"}
    assert source.skipped == (
        ("1.png/2.png", "no such file"),
        ("folder", "not a regular file"),
        ("gone.png", "no such file"),
    )


def test_addresses_and_an_empty_table_are_told_as_such(tmp_path: Path) -> None:
    for text, told in (("path\nftp://x.org/1.png\n", "an address"), ("\n", "it is empty")):
        with pytest.raises(FxError, match=told):
            find_images(table(tmp_path, text))


def test_a_table_may_list_hidden_files_and_files_of_any_name(tmp_path: Path) -> None:
    touch(tmp_path, ".cache/1.png", "2.dcm")
    source = find_images(table(tmp_path, "path\n.cache/1.png\n2.dcm\n"))
    assert len(source.entries) == 2


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 999), parquet_too=st.booleans())
def test_the_order_of_a_table_s_rows_and_columns_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, seed: int, parquet_too: bool
) -> None:
    rng = random.Random(seed)
    root = tmp_path_factory.mktemp("table")
    rows = [
        {
            "path": f"{rng.randrange(9)}.png",
            "label": rng.choice(["a", "b", ""]),
            "split": rng.choice(["train", "val", "test", ""]),
            "group": rng.choice(["g", "h", ""]),
        }
        for _ in range(12)
    ]
    for number in range(6):
        (root / f"{number}.png").touch()
    rows.append(dict.fromkeys(rows[0], "") | {"path": "0.png"})

    def found(name: str) -> ImageSource:
        columns = list(rows[0])
        rng.shuffle(columns)
        rng.shuffle(rows)
        if name.endswith("parquet"):
            cells = {column: [row[column] for row in rows] for column in columns}
            parquet.write_table(pa.table(cells), root / name)
        else:
            lines = [",".join(columns)] + [",".join(row[c] for c in columns) for row in rows]
            (root / name).write_text("\n".join(lines))
        return find_images(root / name)

    assert found("a.csv") == found("b.parquet" if parquet_too else "b.csv")


def test_an_unknown_split_names_its_row_and_value(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "2.png")
    message = error_of(table(tmp_path, "path,split\n1.png,train\n2.png,tset\n"))
    assert "unknown split 'tset' in row 2" in message
    assert "train, val or test" in message


def test_a_missing_path_column_names_the_columns_there_are(tmp_path: Path) -> None:
    message = error_of(table(tmp_path, "filename,label\n1.png,cat\n"))
    assert "`path_column`" in message
    assert "has no column 'path'; it has 'filename', 'label'" in message
    parquet.write_table(pa.table({"image": ["1.png"]}), tmp_path / "t.parquet")
    assert "it has 'image'" in error_of(tmp_path / "t.parquet")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "2 columns 'label'" in error_of(table(tmp_path, "path,label,Label\n1.png,cat,dog\n"))


def test_a_row_without_a_path_is_refused_by_its_number(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    assert "row 2 has no path" in error_of(table(tmp_path, "path,label\n1.png,cat\n,dog\n"))


@pytest.mark.parametrize(
    "content",
    [b"", b"path,label\n1.png,cat,extra\n", b"path,label\n1.png,\xff\xfe\n", b"\xff\xfe\n1\n"],
)
def test_a_table_that_cannot_be_read_is_told(tmp_path: Path, content: bytes) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "t.csv").write_bytes(content)
    assert "t.csv'" in error_of(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(content)
    assert "cannot be read as a parquet table" in error_of(tmp_path / "t.parquet")


def test_a_table_without_rows_is_told(tmp_path: Path) -> None:
    assert "lists no images" in error_of(table(tmp_path, "path,label\n"))


def test_a_table_of_which_nothing_is_there_is_told(tmp_path: Path) -> None:
    message = error_of(table(tmp_path, "path\nb.png\na.png\n"))
    assert "none of the 2 files listed" in message
    assert "'a.png': no such file" in message


def test_a_missing_folder_names_the_nearest_and_what_is_understood(tmp_path: Path) -> None:
    touch(tmp_path, "flowers/rose/1.png")
    message = error_of(tmp_path / "flower")
    assert "'" + str(tmp_path / "flower") + "' does not exist" in message
    assert f"nearest: '{tmp_path / 'flowers'}'" in message
    for layout in ("class folders", "train/", ".csv or .parquet", "one image"):
        assert layout in message
    assert "fx sample" not in message
    assert "nearest" not in error_of(tmp_path / "nowhere" / "at" / "all")
    assert "does not exist" in error_of(tmp_path / "flowers" / "rose" / "1.png" / "2.png")


def test_the_error_of_a_missing_or_empty_folder_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for images in ("data", "data/"):
        with pytest.raises(NoImages) as caught:
            find_images(images)
        assert caught.value.path == Path("data")
    touch(tmp_path, "data/README.md")
    assert "no images below 'data'" in error_of("data")
    with pytest.raises(NoImages) as caught:
        find_images("data/")
    assert caught.value.path == Path("data")


def test_an_empty_folder_tells_what_was_left_out(tmp_path: Path) -> None:
    assert "no images below" in error_of(tmp_path)
    (tmp_path / "gone.png").symlink_to("nowhere")
    assert "1 left out ('gone.png': link to nothing)" in error_of(tmp_path)


def test_a_link_to_nothing_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("nowhere")
    assert "is a link to nothing" in error_of(tmp_path / "data")


def test_what_is_neither_image_nor_table_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "model.onnx", "png")
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("model.onnx", "png", "pipe.csv"):
        assert "neither a folder nor an image nor a table" in error_of(tmp_path / name)


def test_a_name_with_a_line_break_is_told_in_one_line(tmp_path: Path) -> None:
    assert r"a\nb" in error_of(tmp_path / "a\nb")
