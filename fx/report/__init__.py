"""The page that a comparison writes, and what it shows."""

from fx.report.images import HeatMaps, gather_evidence
from fx.report.page import render
from fx.report.writing import learning_curve_png, write_report
