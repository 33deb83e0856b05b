"""Commands of `vitkd-ds`, one file or folder each. `manual.py` lists them, `vitkd_ds/cli.py` calls them."""
