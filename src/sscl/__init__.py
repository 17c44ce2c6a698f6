"""Segmentation of 3-D medical scans from a handful of masks and many unlabelled scans."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`sscl.prepare`, `sscl.train`, ... without importing torch before it is needed."""
    if name.startswith("_"):
        raise AttributeError(name)
    from importlib import import_module

    try:
        return getattr(import_module("sscl.api"), name)
    except AttributeError:
        raise AttributeError(f"module 'sscl' has no attribute '{name}'") from None
