"""Choosing, fitting and measuring heads: the training rows alone decide."""

from heads.fitting.fit import BALANCED, fit_head
from heads.fitting.folds import make_folds
from heads.fitting.resampling import measure_by_resampling

__all__ = ["BALANCED", "fit_head", "make_folds", "measure_by_resampling"]
