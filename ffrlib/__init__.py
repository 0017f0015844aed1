"""ffrlib: a reproducible companion to two papers on sparsity in convolutional networks (FFR and HGSR)."""

__version__ = "0.1.0"
