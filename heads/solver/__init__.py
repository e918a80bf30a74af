"""Logistic regression, solved for many penalties and folds at once."""

from heads.solver.logistic import BLOCK, Problems, along_path

__all__ = ["BLOCK", "Problems", "along_path"]
