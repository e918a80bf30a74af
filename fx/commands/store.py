"""``fx store ls``, ``verify`` and ``gc``: what a store holds, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    record = describe_store(store)
    show(record, json_, lambda: print_store(record))


@store_app.command("verify", cls=Command, epilog="Example: fx store verify features.zarr")
def store_verify(
    store: StoreArgument = FEATURES, json_: Json = False, debug: Debug = False
) -> None:
    """Read everything, and compare checksums.

    The next extraction computes damaged rows again.
    """
    from extract.store import FeatureStore

    damage = FeatureStore(store).verify()
    rows = [f": rows {d.start:,} to {d.stop - 1:,}" if d.stop else "" for d in damage]
    lines = [f"{d.reason}{where}" for d, where in zip(damage, rows, strict=True)]
    if damage:
        lines.append(f"fx extract on the same images into {store} mends what can be mended")
    show(
        {"store": store, "damaged": damage},
        json_,
        lambda: print("\n".join(lines) or f"{store}: every committed row reads back"),
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
    record = {"store": store, "dropped": dropping, "garbage": garbage, "in_use": in_use}
    done = "dropped" if dropping else "nothing was dropped"
    kept = "".join(f"\nstill read, and kept until the next gc: {name}" for name in in_use)
    nothing = f"{store}: snapshots use all that it holds"
    show(record, json_, lambda: print(done + kept if garbage else nothing))


def describe_store(path: Path) -> dict[str, Any]:
    """List a store's feature sets and snapshots.

    Raises
    ------
    FxError
        If there is no store.
    """
    from extract.errors import FxError
    from extract.images import Snapshot
    from extract.store import FeatureStore

    store = FeatureStore(path)
    snapshots, damaged = [], store.broken_sets()
    if reason := store.root_damage():
        damaged[str(path)] = reason

    def rows_of(feature_set: FeatureSet) -> int:
        try:
            return len(feature_set.rows)
        except FxError as error:
            damaged[feature_set.name] = str(error)
            return 0

    for name in store.snapshots():
        try:
            snapshots.append(Snapshot.from_parquet(*store.read_snapshot(name)))
        except FxError as error:
            damaged[name] = str(error)
    return {
        "store": str(path),
        "sets": [
            {
                "name": feature_set.name,
                "spec": feature_set.spec.to_dict(),
                "weights_source": feature_set.weights_source,
                "rows": rows_of(feature_set),
                "dim": feature_set.dim,
                "dtype": str(feature_set.dtype),
                "megabytes": sum(f.lstat().st_size for f in feature_set.path.rglob("*")) / 1e6,
                "engines": sorted({run.engine for run in feature_set.runs}),
            }
            for feature_set in store.sets()
        ],
        "snapshots": [
            {
                "name": snapshot.name,
                "root": snapshot.root,
                "images": len(snapshot.rows),
                "classes": len(snapshot.classes),
                "train": len(snapshot.split("train")),
                "val": len(snapshot.split("val")),
                "test": len(snapshot.split("test")),
                "failed": len(snapshot.failed()),
            }
            for snapshot in snapshots
        ],
        "damaged": damaged,
    }


def print_store(record: dict[str, Any]) -> None:
    """Print feature sets and snapshots."""
    sets = [
        [
            s["name"],
            # a spec may be somebody else's, and say less
            s["spec"].get("layer", "") + (f" ×{crops}" if crops > 1 else ""),
            s["spec"].get("size"),
            s["spec"].get("numerics"),
            s["rows"],
            s["dim"],
            f"{s['megabytes']:.1f}",
        ]
        for s in record["sets"]
        for crops in [s["spec"].get("crops", 1)]
    ]
    print_table(["features", "layer", "size", "as", "rows", "dim", "MB"], sets)
    snapshots = [
        [s["name"], s["images"], s["classes"], s["train"], s["val"], s["test"], s["failed"]]
        for s in record["snapshots"]
    ]
    columns = ["snapshot", "images", "classes", "train", "val", "test", "bad"]
    print_table(columns, snapshots)
    for reason in record["damaged"].values():
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
