"""Heads: classifiers on features, chosen and calibrated inside their training rows."""
