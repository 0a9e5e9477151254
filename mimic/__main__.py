"""``python -m mimic``, and the ``mimic`` command."""

import gc
import signal
import sys

GARBAGE_AFTER = 10_000
"""Objects made before Python looks for garbage among them: what is imported is none, and every 700 took 30 ms."""


def main() -> None:
    """Run the command line. A Ctrl-C while Python still loads it ends the process at once: nothing is there to tidy up.

    Python's own KeyboardInterrupt would be lost in the middle of an import now and then, or end as a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the caller wants it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(GARBAGE_AFTER)
    try:
        from mimic import settings
        from mimic.cli import main as run

        settings.without_blas_threads()  # before a command loads numpy
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # what is left goes with the process; to look for garbage in it first took 50 ms


if __name__ == "__main__":
    main()
