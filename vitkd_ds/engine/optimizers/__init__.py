"""Optimizers, one per file; `--optim.name` is the file's name. Start with `base.py`, the interface."""
