"""Mutation testing: `make mutants` makes random small changes to the package and counts those that tests notice."""
