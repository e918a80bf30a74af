"""Shards: tars and Parquet files that hold many images, which are read where they lie."""

from extract.images.shards.parquet import MOST_ROWS, cells, check_size, open_parquet
from extract.images.shards.patterns import SHARDS, expand_pattern
from extract.images.shards.ranges import SMALL_BLOCK, open_shard
from extract.images.shards.reading import (
    image_place,
    indexes_of,
    is_streamed,
    open_image,
    read_image,
)
from extract.images.shards.rows import forget_files, image_column
from extract.images.shards.tars import learn_indexes, list_tar
