"""Planted defects: one-line changes to a copy of the code, each of which the suite must catch."""
