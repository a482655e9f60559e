"""Trains the gender classifier, and measures it."""
