"""The names that users import, and what importing them costs."""

import subprocess
import sys

import visard
import visard_errors


def test_all_is_sorted_and_complete():
    assert visard.__all__ == sorted(visard.__all__)
    assert all(hasattr(visard, name) for name in visard.__all__)


def test_every_error_is_public_and_drawn_in_the_tree():
    errors = [name for name, value in vars(visard_errors).items() if isinstance(value, type)]
    assert set(errors) <= set(visard.__all__)
    assert all(f"{name} " in visard_errors.__doc__ or f"{name}\n" in visard_errors.__doc__ for name in errors)


def test_import_loads_neither_torch_nor_dlib():
    code = "import sys, visard; print(*sorted({'torch', 'dlib', 'onnx', 'grpc', 'typer', 'PIL'} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []
