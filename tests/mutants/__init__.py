"""Random mutants of the package: `make mutants` draws small changes and counts those that the tests notice."""
