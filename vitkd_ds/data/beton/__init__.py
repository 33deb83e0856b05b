"""The .beton format: its tables and side file, the decoder of its images, and the loader on FFCV that reads it."""
