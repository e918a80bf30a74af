"""Logistic regression, solved for many penalties and many classes."""

from heads.solver.logistic import BLOCK, Map, Problem, along_path
from heads.solver.principal_axes import AXES_ROWS, principal_axes
