"""A package that OLMES needs, by whose name we have a folder too."""

REAL = True
