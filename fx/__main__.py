"""``python -m fx`` is the command ``fx``."""

from fx.cli import main

main()
