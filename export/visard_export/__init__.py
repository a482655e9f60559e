"""Weights files in, a verified and servable model repository out.

The stages in the order of the data: `checkpoints`, `networks`, `graphs`, `onnx`, `verify`, `provenance`, `repository`;
`export` runs them all. It imports no other package of Visard than the errors, and nothing before it is asked to.
"""
