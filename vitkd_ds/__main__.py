"""`python -m vitkd_ds`: the command vitkd-ds, run by the current Python."""

from vitkd_ds.cli import main

if __name__ == "__main__":
    main()
