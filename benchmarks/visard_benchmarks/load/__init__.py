"""Loads on the models: how many faces come back, how fast, how good, and why not."""
