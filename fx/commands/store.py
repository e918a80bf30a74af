"""``fx store ls``, ``verify`` and ``gc``: what a store holds, and whether it is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from extract.errors import FxError
from extract.files import Place, place
from extract.records import Record
from fx.commands.arguments import FEATURES, Debug, Json, StoreArgument
from fx.commands.command import Command
from fx.commands.printing import show
from fx.output import print_table

if TYPE_CHECKING:
    from extract.store import FeatureSet, Garbage

store_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, check or clean up a feature store."
)


@store_app.command("ls", cls=Command, epilog="Example: fx store ls features.zarr")
def store_ls(store: StoreArgument = FEATURES, json_: Json = False, debug: Debug = False) -> None:
    """List feature sets and snapshots."""
    record = describe_store(place(store))
    show(record, json_, lambda: print_store(record))


@store_app.command("verify", cls=Command, epilog="Example: fx store verify features.zarr")
def store_verify(
    store: StoreArgument = FEATURES, json_: Json = False, debug: Debug = False
) -> None:
    """Read everything, and compare checksums.

    The next extraction of the same features computes damaged rows again.
    """
    from extract.store import FeatureStore

    opened = FeatureStore(store)
    damage = opened.verify()
    rows = [f": rows {d.start:,} to {d.stop - 1:,}" if d.stop else "" for d in damage]
    lines = [f"{d.reason}{where}" for d, where in zip(damage, rows, strict=True)]
    if damage:
        lines += [
            f"fx extract on the same images into {opened.path} mends what can be mended, a set of",
            "features where the backbone, layer and size are its own (fx store ls)",
        ]
    show(
        {"store": opened.path, "damaged": damage},
        json_,
        lambda: print("\n".join(lines) or f"{opened.path}: every committed row reads back"),
    )
    if damage:
        raise typer.Exit(1)


@store_app.command("gc", cls=Command, epilog="Example: fx store gc features.zarr --keep 1")
def store_gc(
    store: StoreArgument = FEATURES,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of newest snapshots of each folder to keep. [default: all]"
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Drop what no snapshot uses.

    Rows, old generations, and damaged sets. Asks first.
    """
    from extract.store import FeatureStore, collect, find_garbage

    opened = FeatureStore(store)
    garbage, in_use = find_garbage(opened, keep=keep), list[str]()
    lines = _garbage_lines(garbage)
    if garbage and not json_:
        print("\n".join(lines))
    # with --json and without --yes it is shown alone
    dropping = bool(garbage) and (yes or (not json_ and typer.confirm("drop these?", err=True)))
    if dropping:
        garbage, in_use = collect(opened, keep=keep)
    elif not garbage:
        # a collection that was killed may have left half of what it dropped
        opened.clear_up()
    record = {"store": opened.path, "dropped": dropping, "garbage": garbage, "in_use": in_use}
    done = "dropped" if dropping else "nothing was dropped"
    kept = "".join(f"\nstill read, and kept until the next gc: {name}" for name in in_use)
    nothing = f"{opened.path}: snapshots use all that it holds"
    show(record, json_, lambda: print(done + kept if garbage else nothing))


class StoredFeatures(Record, frozen=True):
    """A feature set in a store; ``engines`` are those that computed its rows."""

    name: str
    spec: dict[str, Any]
    weights_source: str
    rows: int
    dim: int
    dtype: str
    megabytes: float
    engines: list[str]


class StoredSnapshot(Record, frozen=True):
    """A snapshot in a store, and how many images are in it and in its splits."""

    name: str
    root: str
    images: int
    classes: int
    train: int
    val: int
    test: int
    failed: int


class StoreContents(Record, frozen=True):
    """What a store holds, and of what is damaged, why."""

    store: str
    sets: list[StoredFeatures]
    snapshots: list[StoredSnapshot]
    damaged: dict[str, str]


def describe_store(path: Place) -> StoreContents:
    """List a store's feature sets and snapshots.

    Raises
    ------
    FxError
        If there is no store.
    """
    from extract.images import Snapshot
    from extract.store import FeatureStore, size_of

    store = FeatureStore(path)
    snapshots, damaged = [], store.catalogue.broken()
    if reason := store.root.damage():
        damaged[str(path)] = reason

    def rows_of(feature_set: FeatureSet) -> int:
        try:
            return len(feature_set.rows)
        except FxError as error:
            damaged[feature_set.name] = str(error)
            return 0

    for name in store.snapshots():
        try:
            one = Snapshot.from_parquet(*store.read_snapshot(name))
        except FxError as error:
            damaged[name] = str(error)
            continue
        in_splits = [len(one.split(split)) for split in ("train", "val", "test")]
        counts = len(one.rows), len(one.classes), *in_splits, len(one.failed())
        snapshots.append(StoredSnapshot(one.name, one.root, *counts))
    sets = [
        StoredFeatures(
            name=one.name,
            spec=one.spec.to_dict(),
            weights_source=one.weights_source,
            rows=rows_of(one),
            dim=one.dim,
            dtype=str(one.dtype),
            megabytes=size_of(one.path) / 1e6,
            engines=sorted({run.engine for run in one.runs}),
        )
        for one in store.sets()
    ]
    return StoreContents(str(path), sets, snapshots, damaged)


def print_store(contents: StoreContents) -> None:
    """Print feature sets and snapshots."""
    sets = []
    for one in contents.sets:
        spec = one.spec
        layer = spec["layer"] + (f" ×{spec['crops']}" if spec["crops"] > 1 else "")
        size = f"{one.megabytes:.1f}"
        sets.append([one.name, layer, spec["size"], spec["numerics"], one.rows, one.dim, size])
    print_table(["features", "layer", "size", "as", "rows", "dim", "MB"], sets)
    print_table(
        ["snapshot", "images", "classes", "train", "val", "test", "bad"],
        [
            [one.name, one.images, one.classes, one.train, one.val, one.test, one.failed]
            for one in contents.snapshots
        ],
    )
    for reason in contents.damaged.values():
        print(f"damaged: {reason}")


def _garbage_lines(garbage: Garbage) -> list[str]:
    """Say in a line each what can be dropped from a store."""
    lines = [f"snapshot {name}: {reason}" for name, reason in garbage.snapshots.items()]
    lines += [f"features {name}: {reason}" for name, reason in garbage.sets.items()]
    lines += [
        f"features {name}: {count:,} rows that no snapshot uses"
        for name, count in garbage.rows.items()
    ]
    lines += [f"network {name}: its features are gone" for name in garbage.networks]
    return [*lines, f"about {garbage.bytes / 1e6:,.1f} MB in all"]
