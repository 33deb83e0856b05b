"""Mutants that no test can notice, because the package does the same with them.

File -> qualified name of the function -> "old => new", as `make mutants` prints them -> the reason, in one line.
"""

EQUIVALENT: dict[str, dict[str, dict[str, str]]] = {}
