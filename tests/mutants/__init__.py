"""Mutation testing: `make mutants` makes random small changes to the package and counts how many the tests notice."""
