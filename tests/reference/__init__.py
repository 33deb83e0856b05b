"""Slow, obvious float64 twins of the losses: loops over images, tokens and channels, straight from the formulas."""
