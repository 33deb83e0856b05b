"""Commands of `vitkd-ds`, one file or folder each. `manual.py` has their help pages; `vitkd_ds/cli.py` calls them."""
