"""Stage one as the command runs it: the features of images, computed where the store lacks them."""

from pathlib import Path

from extract.backbones import Backbone
from extract.cluster import fill_on
from extract.engines import Engine, quantised_network
from extract.errors import FxError
from extract.extraction import ExtractResult, Fill, classes_left_out, extract
from extract.images import ImageSource, Snapshot, find_images
from extract.store import FeatureStore, StoredNetwork
from fx.options import Options, open_backbone, open_engine
from fx.output import Begin, counted, number_of, printable


def extract_images(
    images: Path,
    options: Options,
    *,
    strict: bool = False,
    rehash: bool = False,
    dtype: str | None = None,
    cluster: str | None = None,
    begin: Begin,
) -> ExtractResult:
    """Extract the features of a folder or table of images into the store.

    Parameters
    ----------
    images : folder, table, or one image
    options : ``snapshot`` names the one taken; ``layers`` may be several
    dtype : that features are kept in; None for what the store has
    strict : fail when an image cannot be read, after all others are done
    rehash : read files that look unchanged, too
    cluster : of Ray, that computes them; as of ``extract.cluster.fill_on``
    begin : given what is being done, returns a progress callback

    Raises
    ------
    FxError
        If there are no images, the backbone cannot be had, or with ``strict`` one is unreadable.
    """
    source = find_images(images, options.reading)
    backbone = open_backbone(options).at_layers(options.layers or ("pool",))

    def quantised() -> StoredNetwork:
        return quantised_network(backbone, FeatureStore.create(options.store), source, begin)

    result = fill_store(
        source,
        backbone,
        open_engine(options, backbone, quantised),
        options,
        dtype=dtype,
        rehash=rehash,
        fill=None if cluster is None else fill_on(cluster),
        begin=begin,
    )
    if strict and result.failed:
        first = result.failed[0]
        raise FxError(
            f"{number_of(len(result.failed), 'image')} cannot be read; the first is "
            f"{first.path}: {first.reason}; the others' features are stored"
        )
    return result


def notes_on_images(source: ImageSource, snapshot: Snapshot) -> list[str]:
    """Say which images and classes are not used, for what extracts them on its way.

    Parameters
    ----------
    source : the images
    snapshot : that was taken of them
    """
    notes = []
    failed = [(one.path, one.reason) for one in snapshot.failed()] + list(source.skipped)
    if failed:
        path, reason = failed[0]
        cannot = number_of(len(failed), "image")
        notes.append(printable(f"{cannot} cannot be read, the first is {path!r}: {reason}"))
    if left_out := classes_left_out(source, snapshot):
        notes.append(f"classes left out: {counted(left_out)}")
    if passed_over := dict(source.passed_over):
        notes.append(f"passed over: {counted(passed_over)}")
    return notes


def fill_store(
    source: ImageSource,
    backbone: Backbone,
    engine: Engine,
    options: Options,
    *,
    dtype: str | None = None,
    rehash: bool = False,
    fill: Fill | None = None,
    begin: Begin,
) -> ExtractResult:
    """Extract the features that the store lacks, as the options say."""
    return extract(
        source,
        backbone=backbone,
        engine=engine,
        store=FeatureStore.create(options.store),
        crops=options.crops or 1,
        dtype=dtype,
        split_seed=options.split_seed,
        snapshot=options.snapshot,
        rehash=rehash,
        fill=fill,
        progress=begin("extracting"),
    )
