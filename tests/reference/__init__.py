"""Slow, obvious float64 reference implementations of the losses, written directly from the formulas."""
