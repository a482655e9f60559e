"""The command `visard folder`: anonymise a data set into another folder.

The work is done by `visard_folder.run`.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typing_extensions import Doc

from visard.blocking import Client
from visard_cli.console import (
    ENGINE_WORDS,
    Engine,
    ModelsOption,
    PersonaKeyOption,
    ServerOption,
    engine_for,
    usage,
    warn_untrained,
)
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_cli.folder_summary import progress, progress_lines, show_summary
from visard_errors import DataError
from visard_folder import LocalEngine, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from visard_folder import Annotations, People
    from visard_folder.run import Engine as Workers

EPILOG = f"Example: visard folder photos/ anonymised/ --unswapped withhold\n\n{exit_help(3, 4, 5, 6, 7, 8)}"

_DEADLINE_S = 120.0  # for one face: a server on a CPU has a window of them to go through
_EMBEDDED_PATIENCE_S = 30.0  # nobody restarts a server that was started for this run
_MIN_KEY_BYTES = 16

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="Folder with photos, in any sub-folders; with --engine ray also a URL, such as s3://bucket/photos.",
        show_default=False,
    ),
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        help="Empty or new folder for the results, or that of a run to resume; likewise a URL.", show_default=False
    ),
]
HashKeyOption = Annotated[
    Path | None,
    Doc("File with a secret: the manifest gets a keyed hash of every source file. None without it."),
]
BoxesOption = Annotated[
    Path | None,
    Doc("CSV file (file,left,top,right,bottom) with boxes around faces that the detector misses, in pixels."),
]
ReceiptOption = Annotated[
    Path | None,
    Doc("Private key (`visard receipt keygen`): sign what the run did as TARGET/.visard/receipt.json."),
]
JournalOption = Annotated[
    Path | None, Doc("Folder of this machine for journal, manifest and report where TARGET is a URL.")
]
FolderEngineOption = Annotated[
    Literal[Engine, "ray"],
    typer.Option(
        envvar="VISARD_ENGINE",
        help=f"{ENGINE_WORDS} Or ray: a Ray cluster does the work, with --server HOST:PORT,HOST:PORT,… for several "
        "servers.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads for everything but the models, in processes of two from four on; by default one for each core, "
        "fewer where memory is short.",
    ),
]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="Running Ray cluster that this machine belongs to ('auto' finds it); without it one is started here.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class PeopleOptions:
    """Who stays visible; exclude each other."""

    keep_people: Annotated[Path | None, Doc("Folder with photos of people whose faces stay visible.")] = None
    only_people: Annotated[Path | None, Doc("Folder with photos of the only people whose faces are hidden.")] = None

    def __post_init__(self) -> None:
        """Refuse both at once."""
        if self.keep_people is not None and self.only_people is not None:
            raise ValueError("--keep-people and --only-people exclude each other")

    def load(self, detector_threshold: float) -> People | None:
        """Find the faces on the photos; None where nobody is named."""
        from visard_folder import load_people

        if self.keep_people is not None:
            return load_people(self.keep_people, "keep", detector_threshold)
        if self.only_people is not None:
            return load_people(self.only_people, "only", detector_threshold)
        return None


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions:
    """What is carried along."""

    coco: Annotated[list[Path] | None, Doc("COCO file to carry along, with the changed gender; repeatable.")] = None
    attributes: Annotated[list[Path] | None, Doc("CSV file to carry along, such as CelebA's; repeatable.")] = None
    gender: Annotated[
        str | None,
        Doc("Column or COCO attribute that says the gender; gender, sex or Male are found by themselves."),
    ] = None

    def annotations(self) -> Annotations:
        """The same for a job."""
        from visard_folder import Annotations

        return Annotations(coco=tuple(self.coco or ()), tables=tuple(self.attributes or ()), gender=self.gender)


@derived
def folder(
    source: SourceArgument,
    target: TargetArgument,
    *,
    settings: Annotated[Settings, Fields()],
    persona_key: PersonaKeyOption = None,
    people: Annotated[PeopleOptions, Fields()],
    boxes: BoxesOption = None,
    carried: Annotated[AnnotationOptions, Fields()],
    hash_key_file: HashKeyOption = None,
    receipt: ReceiptOption = None,
    force: Annotated[bool, Doc("Do everything again, what is done already too.")] = False,
    server: ServerOption = None,
    models: ModelsOption = None,
    engine: FolderEngineOption = "auto",
    workers: WorkersOption = None,
    ray_address: RayAddressOption = None,
    journal: JournalOption = None,
    watch: Annotated[
        bool,
        Doc("Go on until Ctrl-C: take photos as they come into SOURCE, each once it has not changed for two seconds."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> None:
    """Anonymise a folder of photos into another one, and record what became of each.

    The run can be interrupted, or killed, at any moment: run the same command again and it resumes.
    """
    from visard_folder import FolderJob, anonymise_folder, load_boxes

    _check_engine(engine, source, target, server, ray_address, journal, watch=watch)
    usage(lambda: settings.options(persona_key=persona_key))
    if receipt is not None:
        from visard_folder.receipt import load_private_key

        load_private_key(receipt)  # one that cannot sign must be known before the work, not after it
    drawn = None if boxes is None else load_boxes(boxes)
    with ExitStack() as stack:
        listed = people.load(settings.detector_threshold)
        runs = "triton" if engine == "ray" else engine  # a cluster asks servers
        connections = [engine_for(stack, url, models, runs, deadline_s=_DEADLINE_S) for url in _servers(server)]
        with Client(connections[0], workers=1) as client:
            provenance = warn_untrained(client)
        job = FolderJob(
            source=source,
            target=target,
            connections=tuple(connections),
            settings=settings,
            people=listed,
            boxes=drawn,
            key=None if hash_key_file is None else _read_key(hash_key_file),
            persona_key=persona_key,
            annotations=carried.annotations(),
            force=force,
            patience_s=_EMBEDDED_PATIENCE_S if server is None else None,
            journal_folder=journal,
        )
        shown = progress_lines() if watch else progress(stack)
        summary = anonymise_folder(job, _workers(engine, workers, ray_address), shown, watch=watch)
    if receipt is not None:
        summary |= _sign(receipt, summary, settings, provenance)
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        show_summary(summary)
    if summary["outcomes"]["withheld"] or summary["outcomes"]["failed"] or summary["boxes_unused"]:
        raise typer.Exit(3)  # as for a single photo that could not be anonymised


def _workers(engine: str, workers: int | None, ray_address: str | None) -> Workers:
    """Who does the work."""
    if engine != "ray":
        return LocalEngine(workers=workers)
    from visard_folder.ray_engine import RayEngine

    return RayEngine(workers=workers, address=ray_address)


def _servers(server: str | None) -> list[str | None]:
    return [url.strip() for url in server.split(",")] if server else [None]


def _sign(key: Path, summary: Mapping[str, Any], settings: Settings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Sign what a run did, beside its manifest, unless that is signed; gives the receipt's path, and which it was."""
    from visard_folder.receipt import is_signed, write_receipt

    manifests = [Path(path) for path in summary["manifest"]]
    path = manifests[0].with_name("receipt.json")
    if signed := not is_signed(path, key, manifests):
        write_receipt(
            path,
            key,
            counts={name: summary[name] for name in ("outcomes", "faces", "reasons", "errors")},
            settings=asdict(settings),
            models=provenance,
            manifests=manifests,
            seconds=summary["seconds"],
        )
    return {"receipt": str(path), "signed": signed}


def _check_engine(
    engine: str,
    source: str,
    target: str,
    server: str | None,
    ray_address: str | None,
    journal: Path | None,
    *,
    watch: bool,
) -> None:
    """Refuse options that do not go together."""
    from visard_folder.stores import is_url

    if watch and (engine == "ray" or is_url(source) or is_url(target)):
        raise typer.BadParameter("--watch works on this machine, from folder to folder: without --engine ray and URLs")
    if engine != "ray":
        if is_url(source) or is_url(target):
            raise typer.BadParameter("URLs need --engine ray")
        if server is not None and "," in server:
            raise typer.BadParameter("several servers need --engine ray")
    elif ray_address is not None and server is None:
        raise typer.BadParameter("--ray-address needs --server: one that is started here is not reached from all nodes")
    if is_url(target) != (journal is not None):
        raise typer.BadParameter("--journal belongs to a TARGET that is a URL: the folder here for its journal")


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise DataError(f"cannot read the key '{path}' ({error.strerror})") from None
    if len(key) < _MIN_KEY_BYTES:
        raise DataError(
            f"the key in '{path}' has {len(key)} bytes: at least {_MIN_KEY_BYTES} are needed, from "
            "`openssl rand -hex 32` for example. Who can guess it can tell whose photo is in the set"
        )
    return key
