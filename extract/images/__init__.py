"""Images: found, labelled, split, decoded, and written down as a snapshot."""

from extract.images.crops import CROPS
from extract.images.decoding import UnreadableImage, decode, image_size, read_pixels
from extract.images.entries import (
    MAX_IMAGE_MB,
    FileStats,
    ImageEntry,
    ImageRow,
    ImageSource,
    LoadedImage,
    Reading,
)
from extract.images.loader import batched, largest_file, load_images, mean_of_crops, unchanged
from extract.images.near_duplicates import (
    NearCopies,
    are_mirrored,
    first_near_copies,
    hash_of_thumbnail,
    near_copies,
    near_copy_groups,
)
from extract.images.preprocessing import MAX_SIZE, Preprocessing
from extract.images.shards import (
    image_place,
    indexes_of,
    learn_indexes,
    open_image,
    read_image,
)
from extract.images.snapshot import DuplicateImage, FailedImage, Snapshot
from extract.images.sources import find_images
from extract.images.splits import (
    TEST_SHARE,
    assign_splits,
    group_numbers,
    position,
    same_bytes,
    unit_of,
    units_of_classes,
)
