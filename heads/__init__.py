"""Heads: classifiers on features, chosen and calibrated inside their training rows."""

from heads.files import load_head, save_head
from heads.fitting import fit_head
from heads.head import Head
from heads.metrics import Metrics, evaluate

__all__ = ["Head", "Metrics", "evaluate", "fit_head", "load_head", "save_head"]
