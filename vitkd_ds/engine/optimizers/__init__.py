"""One optimizer, one file: `--optim.name` is the name of the file."""
