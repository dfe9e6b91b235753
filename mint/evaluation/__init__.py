"""Scores of what models answer."""
