"""The .beton format: tables, side file, decoder and FFCV-based loader.

Start reading at `format`, which reads and writes the tables in a .beton. `side_file` reads and writes the JSON file
next to it, with class names and checksums. `decode` calls the compiled decoder, and `verify` checks stored images with
it. `stream` is the training backend. It uses FFCV's loader, which `ffcv` adapts, and `read_ahead`, which reads images
into the page cache.
"""
