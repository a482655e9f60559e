"""A signed receipt of a folder run: what was done, with which models and settings, to how many photos and faces.

    receipt without "signature" ─► canonical JSON (RFC 8785) ─► Ed25519 ─► "signature"

It holds counts, no file names, no hashes of photos and no biometric data, so that it may go wherever the data set goes.
It binds the run's manifests by their SHA-256. What it proves is that the owner of a key said this and that nobody
changed it since; not that the pictures in a folder are those of the run, nor that a face in them is unrecognisable.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visard.scoring import SAME_PERSON_BELOW
from visard_errors import DataError, MissingExtra, OutputError
from visard_preprocess.files import write_atomically

try:
    import rfc8785
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
except ImportError as error:
    raise MissingExtra("folder", "a signed receipt") from error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FORMAT = "visard-receipt/1"  # signed with the rest: a signature of something else is no receipt

# Of a model's provenance: everything that identifies it, but not what its file is called.
_PROVENANCE_KEYS = ("checkpoint_sha256", "model_sha256", "network", "architecture", "trained", "licence", "precision")
_LONGEST_WORD = 64  # settings are words and numbers; anything longer, or with a separator in it, may be a path


def make_keys(prefix: Path) -> tuple[Path, Path]:
    """Write a new pair of keys, `PREFIX.key` for its owner alone and `PREFIX.pub` for everybody, both PEM.

    Their folder is made too.

    Returns:
        Path of the private and of the public key.

    Raises:
        OutputError: one of them is there already, which is never overwritten, or the folder cannot be written.
    """
    private, public = prefix.with_name(f"{prefix.name}.key"), prefix.with_name(f"{prefix.name}.pub")
    for path in (private, public):
        if os.path.lexists(path):
            raise OutputError(f"'{path}' exists and is not overwritten: receipts signed with it could not be checked")
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder '{prefix.parent}' cannot be made ({error.strerror}): choose another") from None
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _create(private, secret, 0o600)
    try:
        _create(public, _pem(key.public_key()), 0o644)
    except OutputError:
        private.unlink()
        raise
    return private, public


def write_receipt(
    path: Path,
    key: Path,
    *,
    counts: Mapping[str, Mapping[str, int]],
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    manifests: Sequence[Path],
    seconds: float,
) -> dict[str, Any]:
    """Sign what a run did.

    Args:
        path: where the receipt goes; one that is there is replaced, whole or not at all.
        key: PEM file of the Ed25519 private key.
        counts: `Journal.summary`: `outcomes` of the photos, `faces` by outcome, `reasons`, and `errors`.
        settings: of the run: words, numbers and truth values by name, no paths and no names of people.
        models: the server's provenance by model.
        manifests: the files that list every photo; bound by name and digest.
        seconds: wall time of the run.

    Returns:
        The receipt.

    Raises:
        DataError: the key or a manifest cannot be read.
        OutputError: the receipt cannot be written.
        ValueError: a setting could tell more than a receipt may.
    """
    signer = load_private_key(key)
    receipt: dict[str, Any] = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "visard": metadata.version("visard"),
        "seconds": round(seconds, 3),
        "settings": {name: _harmless(name, value) for name, value in settings.items()},
        "thresholds": _thresholds(),
        "models": {model: {name: origin.get(name) for name in _PROVENANCE_KEYS} for model, origin in models.items()},
        "counts": {name: dict(counts[name]) for name in ("outcomes", "faces", "reasons", "errors")},
        "rates": _rates(counts),
        "manifests": {manifest.name: _digest(manifest) for manifest in manifests},
        "public_key": _fingerprint(signer.public_key()),
    }
    receipt["signature"] = base64.b64encode(signer.sign(_signed_bytes(receipt))).decode()
    text = json.dumps(receipt, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise OutputError(f"cannot write '{path}' ({error.strerror}): choose a folder that can be written") from None
    return receipt


def is_signed(path: Path, key: Path, manifests: Sequence[Path]) -> bool:
    """Whether a receipt is there already that this key signed and that binds exactly these manifests.

    Args:
        path: of the receipt.
        key: PEM file of the Ed25519 private key.
        manifests: the files that list every photo.

    Raises:
        DataError: the key or a manifest cannot be read.
    """
    public_key, digests = (
        load_private_key(key).public_key(),
        {manifest.name: _digest(manifest) for manifest in manifests},
    )
    try:
        return bool(_verified(path, public_key, key)["manifests"] == digests)
    except DataError:
        return False


def verify_receipt(path: Path, key: Path, folder: Path | None = None) -> dict[str, Any]:
    """Check a receipt's signature, and on request the manifests it binds.

    Args:
        path: of the receipt.
        key: PEM file of the Ed25519 public key, obtained from its owner, not from the sender of the receipt.
        folder: the results; their manifests are checked against the receipt's digests.

    Returns:
        The receipt, unchanged since it was signed.

    Raises:
        DataError: it does not hold, and why.
    """
    receipt = _verified(path, load_public_key(key), key)
    if folder is not None:
        _check_manifests(receipt["manifests"], folder)
    return receipt


def _verified(path: Path, public_key: Ed25519PublicKey, key: Path) -> dict[str, Any]:
    """Read a receipt and check its signature; `key` is named where that does not hold."""
    receipt = _parse(path)
    try:
        signature = base64.b64decode(receipt["signature"], validate=True)
        public_key.verify(signature, _signed_bytes(receipt))
    except (KeyError, TypeError, ValueError, RecursionError):  # ValueError: not base64, or not canonical JSON
        raise DataError(f"'{path}' is not a receipt: it has no signature that can be read") from None
    except InvalidSignature:
        if receipt.get("public_key") != _fingerprint(public_key):
            raise DataError(
                f"'{path}' says that another key signed it ({receipt.get('public_key')}), not '{key}' "
                f"({_fingerprint(public_key)})"
            ) from None
        raise DataError(f"'{path}' was changed after it was signed, or signed with another key than '{key}'") from None
    if receipt.get("format") != FORMAT:
        raise DataError(f"'{path}' is signed, but of format {receipt.get('format')!r}; this version reads {FORMAT!r}")
    return receipt


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key in PEM.

    Raises:
        DataError: there is none.
    """
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"'{path}' is not an Ed25519 private key in PEM without a password: `visard receipt keygen`")
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM.

    Raises:
        DataError: there is none.
    """
    try:
        key = serialization.load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise DataError(f"'{path}' is not an Ed25519 public key in PEM: give the .pub file of `visard receipt keygen`")
    return key


def _thresholds() -> dict[str, float]:
    from visard_preprocess.align import MIN_FACE_PX

    return {"same_person_below": SAME_PERSON_BELOW, "min_face_px": MIN_FACE_PX}


def _rates(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float | None]:
    """Shares of what a reader asks for first; None where there is nothing to take a share of."""
    from visard_folder.journal import WRITTEN

    outcomes, ends = counts["outcomes"], counts["faces"]
    photos = sum(outcomes.values()) - outcomes.get("ignored", 0)
    faces = sum(ends.values())

    def share(part: int, whole: int) -> float | None:
        return round(part / whole, 4) if whole else None

    return {
        "photos_written": share(sum(outcomes.get(outcome, 0) for outcome in WRITTEN), photos),
        "faces_swapped": share(ends.get("swapped", 0), faces),
        "faces_covered": share(ends.get("covered", 0), faces),
        "faces_visible": share(ends.get("visible", 0), faces),
    }


def _harmless(name: str, value: Any) -> Any:
    """Let a setting into the receipt, or raise ValueError where it could be a path or a list of names."""
    if isinstance(value, str):
        if len(value) > _LONGEST_WORD or any(mark in value for mark in ("/", "\\", "\0", "\n")):
            raise ValueError(f"the setting {name} may hold a path, which does not belong into a receipt: {value!r}")
    elif not isinstance(value, (bool, int, float, type(None))):
        raise ValueError(f"the setting {name} must be a word, a number or a truth value, not {type(value).__name__}")
    return value


def _check_manifests(digests: Mapping[str, str], folder: Path) -> None:
    for name, digest in digests.items():
        places = [place / name for place in (folder / ".visard", folder) if (place / name).is_file()]
        if not places:
            raise DataError(f"'{folder}' has no {name}, which the receipt binds")
        if _digest(places[0]) != digest:
            raise DataError(f"'{places[0]}' is not the manifest that the receipt binds: it was changed or made anew")


def _signed_bytes(receipt: Mapping[str, Any]) -> bytes:
    return rfc8785.dumps({name: value for name, value in receipt.items() if name != "signature"})


def _parse(path: Path) -> dict[str, Any]:
    """Read a receipt strictly: what a person reads in it must be what was signed."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name stands in it twice")
        return dict(pairs)

    try:
        receipt = json.loads(_read(path), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not a receipt ({error})") from None
    if not isinstance(receipt, dict):
        raise DataError(f"'{path}' is not a receipt: a JSON object was expected")
    return receipt


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): check the path and its permissions") from None


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet, never readable by more than `mode` says."""
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"cannot write '{path}' ({error.strerror}): choose a folder that can be written") from None


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): the receipt binds it") from None
    return digest.hexdigest()


def _pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 bytes of a public key, in hexadecimal."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()
