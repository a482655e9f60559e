"""Pairs to train swappers on: the same face once female, once male."""
