"""Pretrained models and packaged rows by pinned identity."""
