"""The .beton format: tables, side file, decoder and FFCV-based loader.

Start reading at `format`. `format` reads and writes the tables, and `side_file` the checksums next to them. `decode`
calls the compiled decoder, and `verify` checks images with it. `stream` is the training backend, on `ffcv` and
`read_ahead`.
"""
