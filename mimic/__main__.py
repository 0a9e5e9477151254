"""``python -m mimic``."""

from mimic.cli import main

main()
