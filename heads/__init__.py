"""Heads: classifiers on features, chosen and calibrated inside their training rows."""

from heads.audit import Doubts, doubt_labels
from heads.calibration import Calibration, balanced_weights, calibrate
from heads.estimator import HeadClassifier
from heads.figures import new_figure, save_png
from heads.files import load_head, save_head
from heads.fitting import BALANCED, fit_head
from heads.head import Head, HeldOut
from heads.kinds import KINDS
from heads.limits import Limits
from heads.metrics import Metrics, evaluate
from heads.plots import write_plots
from heads.resampling import measure_by_resampling
from heads.transferability import h_score, logme

__all__ = [
    "BALANCED",
    "KINDS",
    "Calibration",
    "Doubts",
    "Head",
    "HeadClassifier",
    "HeldOut",
    "Limits",
    "Metrics",
    "balanced_weights",
    "calibrate",
    "doubt_labels",
    "evaluate",
    "fit_head",
    "h_score",
    "load_head",
    "logme",
    "measure_by_resampling",
    "new_figure",
    "save_head",
    "save_png",
    "write_plots",
]
