"""Leaks: images that lie on both sides of a split, whole or in part, as they are or mirrored."""

from extract.leaks.leaks import (
    Leak,
    kept_near_leaks,
    leaked_copies,
    leaked_groups,
    leaks_not_sought,
    near_leaks,
)
from extract.leaks.parts import find_parts, grey_thumbnail, is_part
