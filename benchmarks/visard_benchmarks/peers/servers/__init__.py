"""One script for each server, run in an environment of its own, and the graph that all of them run."""
