"""mimic: any microscopy image in, a complete and verified Aperio SVS mimic out."""

__version__ = "0.1.0"
