"""What the tests of the export share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory):
    """The graphs of all small networks in both precisions: (kind, precision) → file."""
    from visard_export.graphs import build_graph
    from visard_export.onnx import export_onnx
    from visard_testing.small_models import small_network

    folder = tmp_path_factory.mktemp("onnx")
    files = {}
    for kind in ("classifier", "image", "persona"):
        for precision in ("fp32", "fp16"):
            files[kind, precision] = folder / f"{kind}_{precision}.onnx"
            export_onnx(build_graph(small_network(kind), precision), files[kind, precision])
    return files
