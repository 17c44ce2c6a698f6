"""Segmentation of 3-D medical scans from a handful of masks and many unlabelled scans."""

__version__ = "0.1.0"
