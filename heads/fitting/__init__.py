"""Choosing, fitting and measuring heads: the training rows alone decide."""

from heads.fitting.fit import BALANCED, fit_head
from heads.fitting.folds import make_folds
from heads.fitting.on_disk import can_stream, fit_head_on_disk, scores_on_disk
from heads.fitting.resampling import MIN_PER_CLASS, OUTER_FOLDS, measure_by_resampling
