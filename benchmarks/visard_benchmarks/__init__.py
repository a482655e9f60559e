"""Benchmarks: speed, compared with the best that this machine, or another server on it, can reach."""
