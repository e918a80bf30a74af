"""Images on object storage, in tars and in Parquet: the same source, wherever the bytes lie."""

import functools
import http.server
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import upload, write_classes, write_splits
from pyarrow import parquet
from s3_server import S3Server

from extract.errors import FxError
from extract.files import ObjectPath, place
from extract.images import (
    ImageSource,
    LoadedImage,
    Preprocessing,
    find_images,
    load_images,
    read_image,
)
from extract.images.entries import Reading
from extract.images.shards import indexes_of, learn_indexes, ranges, tars
from extract.images.shards import rows as table_rows
from extract.images.shards.ranges import open_shard, read_range

SEEN = Preprocessing(32, 36, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def loaded(source: ImageSource, **options: Any) -> list[LoadedImage]:
    """Read all images of a source."""
    return list(load_images(source, SEEN, **options))


def content(source: ImageSource, *, splits: bool = True) -> set[tuple[Any, ...]]:
    """Key, label, split and pixels of every image: all but where it lies."""
    found = set()
    for one in loaded(source):
        assert one.row.readable, one.row
        assert one.pixels is not None
        split = one.row.split if splits else None
        found.add((one.row.key, one.row.label, split, one.pixels.tobytes()))
    assert len(found) == len(source.entries)
    return found


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    """Write a tar."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return file


def in_tar(folder: Path, file: Path, label: str = "folder") -> Path:
    """Write a folder of class folders as WebDataset does, in an order of its own."""
    members: dict[str, bytes] = {}
    images = sorted(folder.rglob("*.*"), key=lambda one: one.name[::-1])
    for number, image in enumerate(images):
        name = f"{number:06d}" if label != "folder" else f"{image.parent.name}/{image.stem}"
        members[name + image.suffix] = image.read_bytes()
        if label == "cls":
            members[f"{name}.cls"] = str(number % 2).encode()
        elif label == "txt":
            members[f"{name}.txt"] = image.parent.name.encode() + b"\n"
        elif label == "json":
            members[f"{name}.json"] = json.dumps({"label": image.parent.name, "n": 1}).encode()
    return write_tar(file, members)


def in_parquet(folder: Path, file: Path, *, plain: bool = False) -> Path:
    """Write a folder of class folders as Hugging Face's datasets does, or with a plain column."""
    images = sorted(folder.rglob("*.*"))
    names = sorted({image.parent.name for image in images})
    structs = [{"bytes": image.read_bytes(), "path": image.name} for image in images]
    schema = pa.schema(
        {
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "label": pa.int64(),
        },
        metadata={
            "huggingface": json.dumps(
                {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            )
        },
    )
    columns: dict[str, Any] = {
        "image": structs,
        "label": [names.index(image.parent.name) for image in images],
    }
    if plain:
        schema = pa.schema({"photo": pa.large_binary(), "animal": pa.string()})
        columns = {
            "photo": [one["bytes"] for one in structs],
            "animal": [image.parent.name for image in images],
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns, schema), file, row_group_size=5)
    return file


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of them, as web servers do."""

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        start, stop = 0, len(data)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, stop)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:stop])

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a web server for the test's folder."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    handler = functools.partial(_Ranges, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is read of objects from now on: their names, and how many bytes."""
    made: list[tuple[str, int]] = []
    read, whole = ObjectPath.read_bytes, ObjectPath.read_with_stats

    def read_bytes(self: ObjectPath, *arguments: Any, **named: Any) -> bytes:
        data = read(self, *arguments, **named)
        made.append((self.name, len(data)))
        return data

    def read_with_stats(self: ObjectPath, largest: int) -> Any:
        made.append((self.name, 0))
        return whole(self, largest)

    monkeypatch.setattr(ObjectPath, "read_bytes", read_bytes)
    monkeypatch.setattr(ObjectPath, "read_with_stats", read_with_stats)
    return made


def test_the_same_photos_are_one_source_wherever_they_lie(
    photos: Path, tmp_path: Path, s3: str
) -> None:
    folder = tmp_path / "photos"
    for file in sorted(photos.rglob("*.*"))[::9]:
        target = folder / file.name.partition("_")[0] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    expected = content(find_images(folder))
    tar = in_tar(folder, tmp_path / "tars" / "photos.tar")
    table = in_parquet(folder, tmp_path / "parquet" / "photos.parquet")
    places = [tar, tar.parent, table, table.parent]
    places += [upload(one, s3) for one in (folder, tar, tar.parent, table, table.parent)]
    for where in places:
        source = find_images(where)
        assert content(source) == expected, where
        assert source.kind == "classes"
        # as a command's argument
        if str(where).startswith("s3"):
            assert find_images(Path(where)).entries == source.entries


@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_on_s3_is_listed_as_one_on_a_disk(
    tmp_path: Path, s3: str, s3_server: S3Server, splits: bool
) -> None:
    root = tmp_path / "data"
    (write_splits if splits else write_classes)(root, 3)
    (root / "beside.png").write_bytes(next(root.rglob("*.png")).read_bytes())
    (root / "a" / ".hidden" / "deep").mkdir(parents=True)
    (root / "a" / ".hidden" / "deep" / "x.png").write_bytes(b"x")
    (root / "a" / ".hidden" / "y.png").write_bytes(b"y")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._x.png").write_bytes(b"x")
    (root / "notes.txt").write_bytes(b"notes")
    image = next(root.rglob("b/*.png"))
    image.with_name("without_suffix").write_bytes(image.read_bytes())
    image.with_name("1 ü+?&=%41#.png").write_bytes(image.read_bytes())
    where = upload(root, s3)
    # as some programs write for folders
    for placeholder in ("data/", f"data/{image.parent.relative_to(root)}/"):
        s3_server.client.put_object(Bucket=s3.removeprefix("s3://"), Key=placeholder)
    here, there = find_images(root), find_images(where)
    for name in ("kind", "skipped", "passed_over", "labels", "lost"):
        assert getattr(there, name) == getattr(here, name), name
    plain = [(e.path, e.label, e.split) for e in here.entries]
    assert [(e.path, e.label, e.split) for e in there.entries] == plain
    assert all(entry.stats for entry in there.entries)
    assert str(there.root.resolve()) == f"{s3}/data"


def test_unchanged_objects_are_known_by_the_listing(
    folder: Path, tmp_path: Path, s3: str, requests: list[tuple[str, int]]
) -> None:
    tar = in_tar(folder, tmp_path / "one.tar")
    for where in (upload(folder, s3), upload(tar, s3), str(tar)):
        source = find_images(where)
        first = loaded(source)
        known = {one.row.path: (one.row.stats, one.row.key) for one in first}
        keys = [one.row.key for one in first]
        requests.clear()
        again = loaded(source, stored=keys, known=known)
        assert requests == []
        assert [one.row for one in again] == [one.row for one in first]


def test_a_changed_object_is_read_again(folder: Path, s3: str) -> None:
    where = upload(folder, s3)
    before = loaded(find_images(where))
    known = {one.row.path: (one.row.stats, one.row.key) for one in before}
    (place(where) / "a/000.png").write_bytes((folder / "b/001.png").read_bytes())
    after = loaded(find_images(where), stored=[one.row.key for one in before], known=known)
    changed = [old.row.path for old, new in zip(before, after, strict=True) if old.row != new.row]
    assert changed == ["a/000.png"]


@pytest.mark.parametrize("label", ["cls", "txt", "json", "folder"])
def test_labels_lie_beside_images_in_a_tar(folder: Path, tmp_path: Path, label: str) -> None:
    tar = in_tar(folder, tmp_path / "some.tar", label)
    source = find_images(tar)
    assert source.labels == (("0", "1") if label == "cls" else ("a", "b"))
    assert source.passed_over == ()
    assert source.entries[0].path.startswith("some.tar/")
    if label != "cls":
        assert content(source) == content(find_images(folder))


def test_a_caption_is_no_label_and_a_packed_folder_is_no_class(
    folder: Path, tmp_path: Path
) -> None:
    image = (folder / "a/000.png").read_bytes()
    caption = b"A photograph of a cat.\nIt sits on a mat."
    tar = write_tar(tmp_path / "c.tar", {"1.png": image, "1.txt": caption, "2.json": b"[1]"})
    source = find_images(tar)
    assert source.kind == "unlabelled"
    assert dict(source.passed_over) == {".txt": 1, ".json": 1}
    with tarfile.open(tmp_path / "packed.tar", "w") as packed:
        packed.add(folder, "./some/data")
    assert find_images(tmp_path / "packed.tar").labels == ("a", "b")


@pytest.mark.parametrize("remote", [False, True])
def test_shards_say_their_splits(tmp_path: Path, s3: str, remote: bool) -> None:
    root = write_splits(tmp_path / "data", 3, 2)
    expected = content(find_images(root))
    in_names = tmp_path / "names"
    in_folders = tmp_path / "folders"
    for split in ("train", "test"):
        in_tar(root / split, in_names / f"set-{split}-0001.tar")
        in_parquet(root / split, in_folders / split / "0.parquet")
    for where in (in_names, in_folders):
        source = find_images(upload(where, s3) if remote else where)
        assert source.kind == "splits"
        assert content(source) == expected
        unsplit = find_images(where, Reading(layout="classes"))
        assert {entry.split for entry in unsplit.entries} == {None}


@pytest.mark.parametrize("kind", ["disk", "s3", "http"])
def test_a_pattern_names_shards(folder: Path, tmp_path: Path, s3: str, web: str, kind: str) -> None:
    for number, label in enumerate("ab"):
        in_tar(folder / label, tmp_path / "shards" / f"train-{number + 9:03d}.tar", "folder")
    where = {
        "disk": str(tmp_path / "shards"),
        "s3": upload(tmp_path / "shards", s3),
        "http": f"{web}/shards",
    }[kind]
    source = find_images(f"{where}/train-{{009..010}}.tar")
    assert content(source, splits=False) == content(find_images(folder))
    assert [source.entries[0].path[:14], source.entries[-1].path[:14]] == [
        "train-009.tar/",
        "train-010.tar/",
    ]
    with pytest.raises(FxError, match=r"train-011.tar.*(No such file|no such object)"):
        find_images(f"{where}/train-{{009..011}}.tar")
    with pytest.raises(FxError, match="more than 100,000"):
        find_images(f"{where}/train-{{0..999999999}}.tar")


def test_a_remote_tar_is_read_about_once_for_its_listing_and_once_in_order(
    tmp_path: Path, s3: str, requests: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "BLOCK", 2**16)
    folder = write_classes(tmp_path / "data", 40)
    tar = in_tar(folder, tmp_path / "big.tar")
    size, where = tar.stat().st_size, upload(tar, s3)
    requests.clear()
    source = find_images(where)
    assert sum(read for _, read in requests) <= 1.1 * size
    assert len(requests) <= size // 2**16 + 2
    ranges._read_block.cache_clear()
    requests.clear()
    content(source)
    assert sum(read for _, read in requests) <= 1.3 * size
    assert len(requests) <= 1.5 * size / 2**16 + 2
    # alone, an image costs its own bytes
    ranges._read_block.cache_clear()
    place_of = place(where)
    assert isinstance(place_of, ObjectPath)
    with open_shard(place_of) as (_, stats):
        ranges._last_blocks[place_of] = 0
        requests.clear()
        read_range(place_of, stats, size - 5000, size - 4000)
        assert requests == [("big.tar", 1000)]


def test_an_image_is_read_from_a_shard_that_nobody_has_listed(
    folder: Path, tmp_path: Path, s3: str
) -> None:
    from extract.images.shards import rows

    expected = (folder / "b/003.png").read_bytes()
    tar, table = in_tar(folder, tmp_path / "s.tar"), in_parquet(folder, tmp_path / "s.parquet")
    for root in (str(tmp_path), s3):
        for file, name in ((tar, "s.tar/b/003.png"), (table, "s.parquet/11")):
            if root == s3:
                upload(file, s3)
            tars._indexes.clear()
            rows._opened.cache_clear()
            rows._row_group.cache_clear()
            assert read_image(root, name, 2**30) == expected
            with pytest.raises(OSError, match=r"no such|No such"):
                read_image(root, name + "9", 2**30)
            with pytest.raises(OSError, match="too large"):
                read_image(root, name, 10)


def test_what_one_process_has_listed_another_one_reads(
    folder: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = in_tar(folder, tmp_path / "s.tar")
    upload(tar, s3)
    sources = [find_images(tar), find_images(place(s3) / "s.tar")]
    names = [one.path for one in sources[0].entries]
    known = [pickle.dumps(indexes_of(one.root, names[:4])) for one in sources]
    listed: list[Any] = []
    list_tar = tars.list_tar
    monkeypatch.setattr(tars, "list_tar", lambda where: listed.append(where) or list_tar(where))
    tars._indexes.clear()
    for source, indexes in zip(sources, known, strict=True):
        learn_indexes(pickle.loads(indexes))
        for name in names[:4]:
            assert read_image(source.root, name, 2**30) == read_image(
                folder, name.removeprefix("s.tar/"), 2**30
            )
        assert not listed
        # of the others nothing was told
        for name in names[4:]:
            assert read_image(source.root, name, 2**30)
        with pytest.raises(FileNotFoundError):
            read_image(source.root, "s.tar/none.png", 2**30)
        assert len(listed) == 1
        listed.clear()
    # learnt in parts
    tars._indexes.clear()
    for some in (names[:2], names[2:4]):
        index = pickle.loads(known[0])[tar]
        few = {one: index.members[one] for one in (name.removeprefix("s.tar/") for name in some)}
        learn_indexes({tar: index._replace(members=few)})
    assert all(read_image(tmp_path, name, 2**30) for name in names[:4])
    assert not listed
    # and of another tar than is there now
    write_tar(tar, {"b/003.png": (folder / "a/001.png").read_bytes()})
    assert read_image(tmp_path, "s.tar/b/003.png", 2**30) == (folder / "a/001.png").read_bytes()
    assert len(listed) == 1
    # what was listed here stays, though another machine says otherwise
    learn_indexes(pickle.loads(known[0]))
    assert read_image(tmp_path, "s.tar/b/003.png", 2**30)
    assert len(listed) == 1


def test_folders_may_be_named_like_shards(folder: Path, tmp_path: Path, s3: str) -> None:
    folder.rename(tmp_path / "data.tar")
    source = find_images(tmp_path / "data.tar")
    assert content(source) == content(find_images(upload(tmp_path / "data.tar", s3) + "/"))


def test_a_rewritten_shard_is_indexed_again(folder: Path, tmp_path: Path) -> None:
    tar = in_tar(folder, tmp_path / "s.tar")
    source = find_images(tar)
    write_tar(tar, {"b/003.png": (folder / "a/001.png").read_bytes()})
    assert read_image(tmp_path, "s.tar/b/003.png", 2**30) == (folder / "a/001.png").read_bytes()
    rows = [one.row for one in loaded(source)]
    assert {row.note for row in rows if not row.readable} == {"no such member of the archive"}
    assert {row.key for row in rows if not row.readable} == {b""}


@pytest.mark.parametrize("write", [in_tar, in_parquet])
def test_a_shard_that_is_replaced_meanwhile_is_not_mixed_with_the_old_one(
    write: Callable[[Path, Path], Path], tmp_path: Path, s3: str
) -> None:
    folder = write_classes(tmp_path / "data", 8)
    file = write(folder, tmp_path / ("s.tar" if write is in_tar else "s.parquet"))
    where = upload(file, s3)
    source = find_images(where)
    content(source)
    ranges._read_block.cache_clear()
    write(write_classes(tmp_path / "more", 9), file)
    upload(file, s3)
    # of the row groups those stay in memory that a thread read last
    table_rows._row_group.cache_clear()
    rows = [one.row for one in loaded(source)]
    assert {(row.key, row.note) for row in rows} == {(b"", "it has changed meanwhile")}
    assert len(content(find_images(where))) == 18


def test_a_damaged_tar_is_read_up_to_the_damage(folder: Path, tmp_path: Path) -> None:
    members = {f"a/{n}.png": (folder / "a/000.png").read_bytes() for n in range(9)}
    whole = write_tar(tmp_path / "s.tar", members).read_bytes()
    step = whole.index(b"a/1.png")
    cases = {
        "inside of an image": whole[: 5 * step + 900],
        "inside of a header": whole[: 5 * step + 100],
        "between two members": whole[: 5 * step],
        "a header of zeros and noise": whole[: 5 * step] + b"x" * 512 + whole[5 * step + 512 :],
    }
    for name, data in cases.items():
        (tmp_path / "s.tar").write_bytes(data)
        source = find_images(tmp_path / "s.tar")
        assert [entry.path for entry in source.entries] == [f"s.tar/a/{n}.png" for n in range(5)]
        ((path, reason),) = source.skipped
        assert path == "s.tar", name
        assert "damaged" in reason
        assert all(one.row.readable for one in loaded(source))
    (tmp_path / "s.tar").write_bytes(b"no tar at all" * 1000)
    with pytest.raises(FxError, match=r"no images.*'s.tar': damaged"):
        find_images(tmp_path / "s.tar")


def test_members_that_mean_harm_are_harmless(folder: Path, tmp_path: Path) -> None:
    image = (folder / "a/000.png").read_bytes()
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in/s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "../../out.png", image)
        add(tar, "/etc/absolute.png", image)
        for kind, name in (
            (tarfile.SYMTYPE, "link.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.CHRTYPE, "device.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
            (tarfile.GNUTYPE_SPARSE, "sparse.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        add(tar, "good.png", image)
        huge = tarfile.TarInfo("huge.png")
        huge.size = 2**62
        tar.fileobj.write(huge.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    before = sorted(tmp_path.rglob("*"))
    source = find_images(tmp_path / "in/s.tar")
    assert [e.path for e in source.entries] == ["s.tar/etc/absolute.png", "s.tar/good.png"]
    assert [one.row.readable for one in loaded(source)] == [True, True]
    reasons = dict(source.skipped)
    assert reasons["s.tar/../../out.png"] == "its name leads out of the archive"
    assert {reasons[f"s.tar/{n}.png"] for n in ("link", "hard", "device", "pipe", "sparse")} == {
        "not a regular file"
    }
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["a long name", "attributes", "a negative size", "names of names"])
def test_headers_that_ask_for_much_end_a_tar(folder: Path, tmp_path: Path, kind: str) -> None:
    image = (folder / "a/000.png").read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "good.png", image)
        info = tarfile.TarInfo("evil")
        info.type = tarfile.XHDTYPE if kind == "attributes" else tarfile.GNUTYPE_LONGNAME
        info.size = 2**33
        header = info.tobuf(tarfile.GNU_FORMAT)
        if kind == "a negative size":
            plain = bytearray(tarfile.TarInfo("evil").tobuf(tarfile.GNU_FORMAT))
            plain[124:136] = b"\xff" * 10 + b"\xf8\x00"
            plain[148:156] = b"%06o\0 " % (256 + sum(plain[:148]) + sum(plain[156:512]))
            header = bytes(plain)
        elif kind == "names of names":
            info.size = 0
            header = info.tobuf(tarfile.GNU_FORMAT) * 5000
        tar.fileobj.write(header)  # type: ignore[union-attr]
        add(tar, "bad.png", image)
    with (tmp_path / "s.tar").open("ab") as file:
        file.truncate(2**34)
    source = find_images(tmp_path / "s.tar")
    assert source.entries[0].path == "s.tar/good.png"
    assert len(source.entries) == 1
    assert "damaged" in source.skipped[0][1]


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.zip"])
def test_a_compressed_archive_says_what_to_do(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / name, "w:gz") as tar:
        tar.add(folder, "data")
    for where in (tmp_path / "in" / name, tmp_path / "in"):
        with pytest.raises(FxError, match=r"is compressed.*unpack it"):
            find_images(where)


@pytest.mark.parametrize("remote", [False, True])
def test_columns_of_parquet_with_images_have_other_names(
    folder: Path, tmp_path: Path, s3: str, remote: bool
) -> None:
    file = in_parquet(folder, tmp_path / "p.parquet", plain=True)
    where = upload(file, s3) if remote else file
    source = find_images(where, Reading(label_column="animal"))
    assert content(source) == content(find_images(folder))
    assert dict(source.columns) == {"path": "photo", "label": "animal"}
    table = parquet.read_table(file)
    two = table.add_column(0, "other", table.column("photo"))
    parquet.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(FxError, match="has no column 'path'"):
        find_images(tmp_path / "two.parquet")
    named = find_images(tmp_path / "two.parquet", Reading(path_column="photo"))
    assert named.entries[11].path == "two.parquet/photo/11"
    assert content(named, splits=False).__len__() == 16


def test_splits_and_groups_of_parquet_with_images(folder: Path, tmp_path: Path) -> None:
    table = parquet.read_table(in_parquet(folder, tmp_path / "p.parquet"))
    splits, groups = ["train", "test"] * 8, [str(n // 4) for n in range(16)]
    labels = pa.array([-1, *table.column("label").to_pylist()[1:]])
    table = table.set_column(1, table.field(1), labels)
    table = table.append_column("split", [splits]).append_column("animal", [groups])
    parquet.write_table(table, tmp_path / "p.parquet")
    source = find_images(tmp_path / "p.parquet", Reading(group_column="animal"))
    assert [entry.split for entry in source.entries] == splits
    assert [entry.group for entry in source.entries] == groups
    # -1 is no label
    assert [entry.label for entry in source.entries] == [None, *"aaaaaaa", *"bbbbbbbb"]
    assert dict(source.passed_over) == {"images without a label": 1}


def test_rows_without_bytes_and_damaged_images_cost_themselves_alone(
    folder: Path, tmp_path: Path
) -> None:
    good = (folder / "a/000.png").read_bytes()
    values = [{"bytes": good}, None, {"bytes": None}, {"bytes": b"no image"}, {"bytes": good}]
    kind = pa.struct({"bytes": pa.binary()})
    parquet.write_table(pa.table({"img": pa.array(values, kind)}), tmp_path / "p.parquet")
    rows = [one.row for one in loaded(find_images(tmp_path / "p.parquet"))]
    assert [row.readable for row in rows] == [True, False, False, False, True]
    assert [row.note for row in rows[1:3]] == ["no bytes in this row"] * 2
    data = bytearray((tmp_path / "p.parquet").read_bytes())
    data[4:200] = bytes(196)
    (tmp_path / "p.parquet").write_bytes(data)
    rows = [one.row for one in loaded(find_images(tmp_path / "p.parquet"))]
    assert not any(row.readable or row.key for row in rows)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_and_their_images_lie_anywhere(
    folder: Path, tmp_path: Path, s3: str, web: str, suffix: str
) -> None:
    there = upload(folder, s3)
    files = sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*.png"))
    web += "/data"
    expected = content(find_images(folder))

    def table(cells: list[str]) -> Path:
        columns = {"path": cells, "label": [file[0] for file in files]}
        file = tmp_path / f"t.{suffix}"
        if suffix == "csv":
            lines = [f"{path},{label}" for path, label in zip(*columns.values(), strict=True)]
            file.write_text("\n".join(["path,label", *lines]))
        else:
            parquet.write_table(pa.table(columns), file)
        return file

    relative, absolute = table(files).read_bytes(), [f"{there}/{file}" for file in files]
    (place(there) / f"t.{suffix}").write_bytes(relative)
    (folder / f"t.{suffix}").write_bytes(relative)
    beside = find_images(f"{there}/t.{suffix}")
    assert content(beside) == expected
    assert all(entry.stats for entry in beside.entries)
    assert content(find_images(f"{web}/t.{suffix}")) == expected
    # the root is a URL, too, as an option gives it
    for root in (there, web):
        assert content(find_images(table(files), Reading(root=Path(root)))) == expected
    of_urls = find_images(table(absolute))
    assert content(of_urls) == expected
    assert all(entry.stats for entry in of_urls.entries)
    assert content(find_images(upload(table(absolute), f"{s3}/elsewhere"))) == expected
    mixed = [f"{web}/{files[0]}", absolute[1], *(str(folder / file) for file in files[2:])]
    assert content(find_images(table(mixed))) == expected
    lost = find_images(table([f"{there}/none.png", f"{web}/none.png", *absolute[2:]]))
    assert lost.skipped == ((f"{there}/none.png", "no such object"),)
    failed = [one.row for one in loaded(lost) if not one.row.readable]
    assert [(row.path, row.key) for row in failed] == [(f"{web}/none.png", b"")]


def test_a_table_that_names_few_of_many_objects_is_not_refused(
    folder: Path, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = upload(folder, s3)
    (tmp_path / "t.csv").write_text(f"path\n{there}/b/000.png\n{there}/a/000.png\n")
    monkeypatch.setattr("extract.images.tables.MOST_BESIDE", -499)
    source = find_images(tmp_path / "t.csv")
    assert [entry.stats is None for entry in source.entries] == [False, True]
    assert len(content(source)) == 2


def test_http_says_what_to_give_instead_of_a_folder(folder: Path, web: str) -> None:
    with pytest.raises(FxError, match="folders cannot be listed over HTTP; give"):
        find_images(f"{web}/data")
    (folder / "a/000.png").rename(folder / "a/a name #1%20.png")
    source = find_images(f"{web}/data/a/a%20name%20%231%2520.png")
    assert loaded(source)[0].row.readable
    for name in ("none.png", "none.csv", "none.tar"):
        with pytest.raises(FxError, match=r"none\.\w+"):
            find_images(f"{web}/{name}")


@pytest.mark.parametrize(
    "url",
    [
        "https://someone:hunter2@example.org/a.csv",
        "https://example.org/a.csv?X-Amz-Signature=hunter2",
        "s3://someone:hunter2@bucket/a.csv",
    ],
)
def test_no_password_or_signature_is_taken_or_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"path\n{url}\n")
    for where in (url, Path(url), tmp_path / "t.csv"):
        with pytest.raises(FxError, match=r"leave it out|comes with a query") as caught:
            find_images(where)
        assert "hunter2" not in str(caught.value)


def test_what_the_storage_fails_at_is_told_with_its_place(
    folder: Path, s3: str, s3_server: S3Server
) -> None:
    with pytest.raises(FxError, match=r"s3://nobody-has-this/x.*no such bucket"):
        find_images("s3://nobody-has-this/x")
    with pytest.raises(FxError, match="does not exist, or is empty"):
        find_images(f"{s3}/x")
    s3_server.client.put_object(Bucket=s3.removeprefix("s3://"), Key="odd/a//1.png", Body=b"1")
    with pytest.raises(FxError, match=r"a//1.png.*; rename or delete that object$"):
        find_images(f"{s3}/odd")
    where = upload(folder, s3)
    source = find_images(where)
    (place(where) / "a/001.png").unlink()
    rows = [one.row for one in loaded(source)]
    assert [(row.path, row.key, row.note) for row in rows if not row.readable] == [
        ("a/001.png", b"", "no such object, or no such bucket")
    ]


class _Denying(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_denied_access_is_one_error(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for where in ("s3://denied-bucket/x", "s3://denied-bucket/x.tar", "s3://denied-bucket/x.csv"):
        with pytest.raises(FxError, match=r"s3://denied-bucket/x.*denies access"):
            find_images(where)
    server.shutdown()
    server.server_close()
