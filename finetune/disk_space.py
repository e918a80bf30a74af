"""Whether the disk has room for what a training will write, checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from extract.errors import NoRoom
from extract.files import check_room, in_units
from extract.images import ImageRow
from finetune.settings import AUTO, FinetuneSettings
from finetune.split import Resources, SplitNetwork, bytes_of_activations
from finetune.training import bytes_of
from heads.limits import MAX_ROWS

# Written besides tensors: bytes a step, and those of tables and images.
STEP_BYTES, SMALL_FILES = 150, 4_000_000
SMALLEST_STEP = 16  # images, where the batch size is to be found


def check_room_for_training(
    directory: Path,
    split: SplitNetwork,
    rows: Sequence[ImageRow],
    training: Sequence[ImageRow],
    *,
    settings: FinetuneSettings,
    resources: Resources,
    kept: bool,
    auxiliaries: nn.Module | None = None,
) -> int:
    """Make sure that the disk has room for all that a training writes.

    Parameters
    ----------
    directory : of the training
    split : what trains, and what does not
    rows : images whose activations are kept
    training : images that train
    settings, resources : of the training
    kept : whether the outputs of what does not train are
    auxiliaries : what trains along and is not delivered

    Returns
    -------
    bytes of all but the activations

    Raises
    ------
    NoRoom
        If there is less room.
    CannotWrite
        If nothing can be written there.
    """
    delivered = nn.ModuleList([split.tail, split.classifier])
    along = nn.ModuleList([] if auxiliaries is None else [auxiliaries])
    trained = [one for part in (delivered, along) for one in part.parameters() if one.requires_grad]
    moments = 2 * sum(one.nbytes for one in trained)
    size = SMALLEST_STEP if settings.batch_size == AUTO else settings.step_size
    images = len(training)
    steps = replace(settings, batch_size=size).epochs_for(images) * -(-images // size)
    # with the best epoch's tensors and their average beside the last one's
    state = 3 * bytes_of(delivered.state_dict()) + bytes_of(along.state_dict()) + moments
    state += steps * STEP_BYTES
    model = bytes_of(split.backbone.module.state_dict()) + bytes_of(split.classifier.state_dict())
    model += 4 * split.backbone.dim * min(MAX_ROWS, images)  # limits
    # each state is written beside the last one, and the model beside a state
    resumed = (directory / "training.safetensors").exists()
    reserved = max(state, model) + (0 if resumed else state) + SMALL_FILES
    # of an interrupted run the activations may be there already
    if resources.cache.exists():
        check_room(directory, reserved)
        return reserved
    least = 3 * split.backbone.preprocessing.size**2 * len(rows)
    if split.trunk is not None and kept:
        activations = bytes_of_activations(split.backbone, split.trunk)
        activations *= len(rows) + settings.kept_views * images
        # a limit says what is kept; without one, pixels are where they are fewer
        if resources.cache_limit is not None:
            try:
                check_room(directory, reserved + activations)
            except NoRoom as error:
                # what else is written would have no room either
                check_room(directory, reserved)
                raise NoRoom(
                    f"{error}; or set `cache_limit` below {in_units(activations)}, and the frozen "
                    "blocks run for every batch"
                ) from error
            return reserved
        least = min(least, activations)
    check_room(directory, reserved + least)
    return reserved
