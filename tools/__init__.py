"""Robustness programs and the tables of the README."""
