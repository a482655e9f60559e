"""Receipts of folder runs: what they say, what they keep to themselves, and that no letter of them can be changed."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from visard_cli.receipt import app
from visard_errors import DataError, OutputError
from visard_folder.journal import FaceRecord, Journal, Record
from visard_folder.receipt import make_keys, verify_receipt, write_receipt

PROVENANCE = {
    "checkpoint": "private name.pth",
    "checkpoint_sha256": "aa" * 32,
    "model_sha256": "bb" * 32,
    "network": "pix2pixhd",
    "architecture": {"ngf": 64, "head": "image"},
    "trained": True,
    "licence": None,
    "precision": "fp16",
    "created": "2026-01-01",
}


def record(path, outcome, *reasons, error=None):
    faces = tuple(
        FaceRecord(
            box=(1, 2, 3, 4),
            outcome="swapped" if reason is None else "covered",
            reason=reason,
            identity_distance=0.7123,
        )
        for reason in reasons
    )
    return Record(path=path, outcome=outcome, hash="cc" * 32, faces=faces, seconds={"swap": 0.5}, error=error)


RECORDS = (
    record("anna/holiday.jpg", "anonymised", None, None),
    record("ben.png", "visible", None, "not_flipped"),
    record("carl.webp", "withheld", error="NoFace"),
    record("notes.txt", "ignored"),
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys") / "visard")


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """What a run's own journal counts."""
    with Journal(tmp_path_factory.mktemp("journal"), {}) as journal:
        for each in RECORDS:
            journal.add(each)
        return journal.summary()


NOTHING = {"outcomes": {}, "faces": {}, "reasons": {}, "errors": {}}


@pytest.fixture
def target(tmp_path):
    """A folder of results with its manifest."""
    (tmp_path / "out" / ".visard").mkdir(parents=True)
    (tmp_path / "out" / ".visard" / "manifest.csv").write_text("path\nanna/holiday.jpg\n")
    return tmp_path / "out"


@pytest.fixture
def receipt(target, keys, counts):
    path = target / "receipt.json"
    write_receipt(
        path,
        keys[0],
        counts=counts,
        settings={"unswapped": "cover", "min_confidence": 0.75, "identity": True, "detector_threshold": 0.6},
        models={"generator_to_male": PROVENANCE},
        manifests=[target / ".visard" / "manifest.csv"],
        seconds=12.34567,
    )
    return path


def test_what_it_says(receipt, keys):
    said = verify_receipt(receipt, keys[1])
    seen = {name: {word: n for word, n in part.items() if n} for name, part in said["counts"].items()}
    assert seen == {
        "outcomes": {"anonymised": 1, "visible": 1, "withheld": 1, "ignored": 1},
        "faces": {"swapped": 3, "covered": 1},
        "reasons": {"not_flipped": 1},
        "errors": {"NoFace": 1},
    }
    assert said["rates"]["photos_written"] == pytest.approx(2 / 3, abs=1e-4)
    assert said["rates"]["faces_swapped"] == 0.75
    assert said["rates"]["faces_covered"] == 0.25
    assert said["thresholds"] == {"same_person_below": 0.6, "min_face_px": 40}
    assert said["models"]["generator_to_male"]["checkpoint_sha256"] == "aa" * 32
    assert said["manifests"] == {"manifest.csv": hashlib.sha256(b"path\nanna/holiday.jpg\n").hexdigest()}
    assert said["seconds"] == 12.346


def test_what_it_keeps_to_itself(receipt):
    text = receipt.read_text()
    for secret in ("anna", "holiday", "ben", "carl", "notes", "cccc", "0.7123", "private name", str(receipt.parent)):
        assert secret not in text


def test_signature_by_its_definition(receipt, keys):
    """Ed25519 over the canonical JSON (RFC 8785) of everything else, worked out here without the module."""
    said = json.loads(
        receipt.read_text(), parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text)
    )
    signature = base64.b64decode(said.pop("signature"))
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    public = serialization.load_pem_public_key(keys[1].read_bytes())
    public.verify(signature, canonical)
    assert said["public_key"] == hashlib.sha256(public.public_bytes_raw()).hexdigest()


def leaves(tree, path=()):
    if isinstance(tree, dict):
        for name, node in tree.items():
            yield from leaves(node, (*path, name))
    else:
        yield path


def test_every_field_is_bound(receipt, keys):
    original = json.loads(receipt.read_text())
    fields = list(leaves(original))
    assert len(fields) > 25
    for path in fields:
        for change in ("changed", "removed"):
            tampered = copy.deepcopy(original)
            node = tampered
            for name in path[:-1]:
                node = node[name]
            if change == "removed":
                del node[path[-1]]
            else:
                value = node[path[-1]]
                node[path[-1]] = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.001}.get(
                    type(value), lambda v: f"{v}x"
                )(value)
            receipt.write_text(json.dumps(tampered))
            with pytest.raises(DataError):
                verify_receipt(receipt, keys[1])
    receipt.write_text(json.dumps(original | {"added": 1}))
    with pytest.raises(DataError, match="changed"):
        verify_receipt(receipt, keys[1])
    receipt.write_text(json.dumps(original, separators=(",", ":")))  # another layout of the same content
    assert verify_receipt(receipt, keys[1]) == original


def test_a_name_that_stands_twice_is_refused(receipt, keys):
    """Readers of JSON differ in which of two they believe; the signature would cover only the last."""
    receipt.write_text(receipt.read_text().replace("{", '{"seconds": 1,', 1))
    with pytest.raises(DataError, match="twice"):
        verify_receipt(receipt, keys[1])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "nonsense", '{"signature": 1}', '{"signature": "é"}', '{"signature":"AA==","x":NaN}', "[" * 9**5],
)
def test_what_is_no_receipt(tmp_path, keys, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"r\.json"):
        verify_receipt(tmp_path / "r.json", keys[1])


def test_a_signature_of_something_else_is_no_receipt(tmp_path, keys):
    private = serialization.load_pem_private_key(keys[0].read_bytes(), None)
    content = {"format": "other/1"}
    signature = base64.b64encode(private.sign(b'{"format":"other/1"}')).decode()
    (tmp_path / "r.json").write_text(json.dumps(content | {"signature": signature}))
    with pytest.raises(DataError, match="other/1"):
        verify_receipt(tmp_path / "r.json", keys[1])


def test_another_key(receipt, keys, tmp_path):
    _, other = make_keys(tmp_path / "other")
    with pytest.raises(DataError, match="another key"):
        verify_receipt(receipt, other)
    for wrong in (keys[0], receipt, tmp_path / "gone.pub"):
        with pytest.raises(DataError, match=wrong.name):
            verify_receipt(receipt, wrong)


def test_manifests_are_bound(receipt, target, keys):
    verify_receipt(receipt, keys[1], target)
    manifest = target / ".visard" / "manifest.csv"
    manifest.write_text("path\nanna/other.jpg\n")
    with pytest.raises(DataError, match="manifest"):
        verify_receipt(receipt, keys[1], target)
    manifest.unlink()
    with pytest.raises(DataError, match=r"no manifest\.csv"):
        verify_receipt(receipt, keys[1], target)


@pytest.mark.parametrize("value", ["/home/anna/photos", "a\\b", "x" * 65, ["anna", "ben"], {"a": 1}])
def test_settings_cannot_carry_paths_or_lists(target, keys, value):
    with pytest.raises(ValueError, match="keep_people"):
        write_receipt(
            target / "r.json",
            keys[0],
            counts=NOTHING,
            settings={"keep_people": value},
            models={},
            manifests=(),
            seconds=1.0,
        )
    assert not (target / "r.json").exists()


def test_an_empty_run_has_no_rates(target, keys):
    said = write_receipt(target / "r.json", keys[0], counts=NOTHING, settings={}, models={}, manifests=(), seconds=0.0)
    assert set(said["rates"].values()) == {None}
    assert verify_receipt(target / "r.json", keys[1]) == said


def test_failures_leave_nothing(tmp_path, keys):
    with pytest.raises(OutputError, match="cannot write"):
        write_receipt(
            tmp_path / "no" / "r.json", keys[0], counts=NOTHING, settings={}, models={}, manifests=(), seconds=0.0
        )
    with pytest.raises(DataError, match="private key"):
        write_receipt(tmp_path / "r.json", keys[1], counts=NOTHING, settings={}, models={}, manifests=(), seconds=0.0)
    assert list(tmp_path.iterdir()) == []


# --- keys ---


def test_private_key_is_its_owners_alone_and_never_overwritten(tmp_path):
    private, public = make_keys(tmp_path / "me.2026")
    assert (private.name, public.name) == ("me.2026.key", "me.2026.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(OutputError, match="not overwritten"):
        make_keys(tmp_path / "me.2026")
    private.unlink()
    with pytest.raises(OutputError, match="not overwritten"):  # the public key alone is reason enough
        make_keys(tmp_path / "me.2026")
    assert not private.exists()
    assert public.read_bytes() == before[1]
    private.symlink_to(tmp_path / "elsewhere")
    public.unlink()
    with pytest.raises(OutputError, match="not overwritten"):
        make_keys(tmp_path / "me.2026")
    assert not (tmp_path / "elsewhere").exists()


# --- commands ---


def test_commands(receipt, target, tmp_path, keys):
    runner = CliRunner()
    run = runner.invoke(app, ["keygen", str(tmp_path / "keys" / "mine")])
    assert run.exit_code == 0
    assert (tmp_path / "keys" / "mine.key").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        make_keys(tmp_path / "file" / "mine")

    run = runner.invoke(app, ["verify", str(receipt), "--key", str(keys[1]), "--folder", str(target)])
    assert run.exit_code == 0, run.output
    run = runner.invoke(app, ["verify", str(receipt), "--key", str(tmp_path / "keys" / "mine.pub")])
    assert run.exit_code == 1
    receipt.write_text(receipt.read_text().replace('"swapped": 3', '"swapped": 4'))
    run = runner.invoke(app, ["verify", str(receipt), "--key", str(keys[1])])
    assert run.exit_code == 1
    assert runner.invoke(app, ["verify", str(receipt)]).exit_code == 2


def test_words_of_the_commands(receipt, keys, capfd):
    """The consoles were made at import, so the words are read from the process itself."""
    with pytest.raises(SystemExit, match="0"):
        app(["verify", str(receipt), "--key", str(keys[1])])
    out = capfd.readouterr().out
    assert "VALID" in out
    assert "were not checked" in out
    assert "swapped 3" in out
    receipt.write_text(receipt.read_text().replace('"swapped": 3', '"swapped": 4'))
    with pytest.raises(SystemExit, match="1"):
        app(["verify", str(receipt), "--key", str(keys[1])])
    assert "NOT VALID" in capfd.readouterr().err
