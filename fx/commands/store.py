"""The commands ``fx store ls``, ``verify`` and ``gc``."""

from __future__ import annotations

from typing import Annotated

import typer

from fx.commands.arguments import FEATURES, Debug, Json, StoreArgument, show

store_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look into a feature store, and check it."
)


@store_app.command("ls", epilog="Example: fx store ls features.zarr")
def store_ls(store: StoreArgument = FEATURES, json_: Json = False, debug: Debug = False) -> None:
    """List what a store holds: feature sets and snapshots."""
    from fx.commands.listing import describe_store
    from fx.commands.summaries import print_store

    record = describe_store(store)
    show(record, json_, lambda: print_store(record))


@store_app.command("verify", epilog="Example: fx store verify features.zarr")
def store_verify(
    store: StoreArgument = FEATURES, json_: Json = False, debug: Debug = False
) -> None:
    """Read a store back, checksums included; the next extraction mends what is damaged."""
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


@store_app.command("gc", epilog="Example: fx store gc features.zarr --keep 1")
def store_gc(
    store: StoreArgument = FEATURES,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Newest snapshots of each folder to keep. [default: all]"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Drop what no snapshot uses: rows, old generations, damaged sets. Asks first."""
    from extract.store import FeatureStore, collect, find_garbage
    from fx.commands.summaries import garbage_lines

    opened = FeatureStore(store)
    garbage, in_use = find_garbage(opened, keep=keep), list[str]()
    lines = garbage_lines(garbage)
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
