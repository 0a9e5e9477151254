"""mimic against its peers and against what the machine can do, in one run: ``python tools/bench --size 20k``."""
