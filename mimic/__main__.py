"""``python -m mimic``, and the ``mimic`` command."""

import sys


def main() -> None:
    """Run the command line; a Ctrl-C while Python still loads it ends it quietly too."""
    try:
        from mimic.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
