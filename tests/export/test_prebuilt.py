"""The demo models without torch: to the last bit what an export gives, and damaged files are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from visard_errors import ExportError
from visard_export import prebuilt
from visard_export.checkpoints import load_classifier, load_generator, sha256_of
from visard_export.demo import demo_checkpoints
from visard_export.graphs import AnonymizerGraph
from visard_export.onnx import export_onnx
from visard_export.repository import EXPORTED_MODELS, read_provenance


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Made in a process that cannot import torch."""
    folder = tmp_path_factory.mktemp("prebuilt") / "models"
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from visard_export.prebuilt import put_together\n"
        f"put_together(Path({str(folder)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def test_it_is_the_export_of_the_demo_weights_to_the_last_bit(repository, tmp_path):
    """Where this fails after a change of weights or graphs: python -m visard_testing.demo_graphs"""
    paths = demo_checkpoints()
    generator = load_generator(paths.to_male).network()
    export_onnx(
        AnonymizerGraph(load_classifier(paths.classifier).network(), generator, generator), tmp_path / "model.onnx"
    )
    assert sha256_of(repository / "anonymizer" / "1" / "model.onnx") == sha256_of(tmp_path / "model.onnx")


def test_its_provenance_is_of_these_files_and_weights(repository):
    paths = demo_checkpoints()
    classifier, persona = sha256_of(paths.classifier), sha256_of(paths.to_male)
    provenance = read_provenance(repository)
    assert {model: origin["checkpoint_sha256"] for model, origin in provenance.items()} == {
        "gender_classifier": classifier,
        "generator_to_male": persona,
        "generator_to_female": persona,
        "anonymizer": f"{classifier} + {persona}",
    }
    for model in (*EXPORTED_MODELS, "anonymizer"):
        assert provenance[model]["model_sha256"] == sha256_of(repository / model / "1" / "model.onnx")


@pytest.mark.parametrize("damaged", ["graphs.zip", "gender_classifier.safetensors", "persona.safetensors"])
def test_damaged_files_are_refused(damaged, tmp_path, monkeypatch):
    folder = shutil.copytree(prebuilt.WEIGHTS_FOLDER, tmp_path / "weights")
    content = bytearray((folder / damaged).read_bytes())
    content[len(content) // 2] ^= 255
    (folder / damaged).write_bytes(content)
    monkeypatch.setattr(prebuilt, "WEIGHTS_FOLDER", folder)
    with pytest.raises(ExportError, match="cannot be put together"):
        prebuilt.put_together(tmp_path / "models")
    assert not (tmp_path / "models").exists()
    (folder / damaged).unlink()
    with pytest.raises(ExportError, match="cannot be put together"):
        prebuilt.put_together(tmp_path / "models")
