"""Linear classifiers, solved for many penalties and many classes."""

from heads.solver.linear import BLOCK, Map, Problem, SquaredHinge, along_path, blocks_of
from heads.solver.on_disk import ArrayOnDisk, RowsOnDisk, StreamedRows
from heads.solver.principal_axes import AXES_ROWS, principal_axes
