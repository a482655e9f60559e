"""The command `visard swap`: photos in, anonymised photos out."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from visard import Client, Options, ServerUnavailable, VisardError
from visard.boxes import parse_box
from visard_cli import outputs, report
from visard_cli.console import (
    CaOption,
    EngineOption,
    ModelsOption,
    PersonaKeyOption,
    ServerOption,
    TlsOption,
    TokenOption,
    coloured,
    engine_for,
    err,
    out,
    usage,
    warn_untrained,
)
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_code, exit_help
from visard_preprocess.files import one_line

if TYPE_CHECKING:
    from visard.policy import FaceOutcome
    from visard.result import Outcome
    from visard_server.triton import TritonServer

EPILOG = f"Example: visard swap family.jpg -o anonymised/ --side-by-side\n\n{exit_help(3, 4, 6, 7, 8)}"

BoxOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        help="Around a face that the detector misses, in pixels of the upright photo; repeatable, for one photo.",
    ),
]


@derived
def swap(
    photos: Annotated[
        list[Path], typer.Argument(help="JPEG, PNG, WebP, AVIF or HEIC photos.", readable=False, show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for one photo (.jpg, .png, .webp), else a folder.")
    ],
    *,
    server: ServerOption = None,
    models: ModelsOption = None,
    engine: EngineOption = "auto",
    options: Annotated[Options, Fields(without=("output", "landmarks_model", "max_pixels", "persona_key", "boxes"))],
    persona_key: PersonaKeyOption = None,
    box: BoxOption = None,
    crops: Annotated[bool, typer.Option("--crops", help="Save the generated faces alone, 512×512 each.")] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Also save before and after in one picture (shows the original!).")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only find the faces: draw numbered boxes into copies of the originals (NAME_boxes.jpg) and say what "
            "would become of each. Needs neither a server nor models.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per photo on standard output.")] = False,
    tls: TlsOption = False,
    ca: CaOption = None,
    token: TokenOption = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one face.")] = 30.0,
    encoded: Annotated[
        bool, typer.Option("--encoded", help="Send faces to --server as JPEG, a tenth of the bytes; see `export`.")
    ] = False,
) -> None:
    """Anonymise photos: every face found is swapped, or covered where the swap would not hide it well enough."""
    boxes = usage(lambda: tuple(map(parse_box, box or ())))
    if boxes and len(photos) > 1:
        raise typer.BadParameter("--box belongs to one photo: give one, or use `visard folder --boxes`")
    written = {"boxes": True} if dry_run else {"crops": crops, "side_by_side": side_by_side}
    targets = usage(lambda: outputs.choose_targets(photos, output, **written))
    output_kind: Literal["photo", "crops"] = "crops" if crops else "photo"
    options = usage(lambda: replace(options, output=output_kind, persona_key=persona_key, boxes=boxes))
    outputs.make_folder(targets[0].parent)
    if dry_run:
        from visard_cli import dry_run as looking

        if code := looking.dry_run(photos, targets, options, as_json=as_json):
            raise typer.Exit(code)
        return
    for photo, target in zip(photos, targets, strict=True):
        if target.parent == output and photo.suffix != target.suffix and not crops:
            err.print(one_line(f"{photo.name} is written as {target.name}"), soft_wrap=True)
    run = _Run(photos, targets, side_by_side=side_by_side, as_json=as_json)
    servers: list[TritonServer] = []  # the embedded one, if any
    with ExitStack() as stack:
        connection = engine_for(
            stack,
            server,
            models,
            engine,
            started=servers.append,
            tls=tls,
            root_certificates=ca,
            token=token,
            deadline_s=deadline,
            encoded=encoded,
        )
        client = stack.enter_context(Client(connection))
        warn_untrained(client)
        outcomes = stack.enter_context(report.progress_bar(err, len(photos), show=not as_json and len(photos) > 1))
        for outcome in outcomes(client.anonymize_many(photos, options)):
            error = run.take(outcome)
            if isinstance(error, ServerUnavailable) and any(each.ended for each in servers):
                break  # nobody starts it again: waiting for it is in vain
    run.say()
    if run.failures:
        raise typer.Exit(exit_code(run.failures[0][1]))


class _Run:
    """What became of the photos so far."""

    def __init__(self, photos: list[Path], targets: list[Path], *, side_by_side: bool, as_json: bool) -> None:
        self.photos = photos
        self.targets = targets
        self.side_by_side = side_by_side
        self.as_json = as_json
        self.tried = 0
        self.failures: list[tuple[Path, Exception]] = []
        self.faces: Counter[FaceOutcome] = Counter()
        self.table = report.scores_table()

    def take(self, outcome: Outcome) -> Exception | None:
        """Write one photo's result and say so; gives the error that kept it from being written."""
        self.tried += 1
        source, target = self.photos[outcome.index], self.targets[outcome.index]
        error = outcome.error
        saved: list[Path] = []
        if outcome.result is not None:
            try:
                saved = outputs.save_result(outcome.result, source, target, side_by_side=self.side_by_side)
            except VisardError as failure:
                error = failure
            else:
                self.faces.update(face.outcome for face in outcome.result.all_faces)
        if error is not None:
            self.failures.append((source, error))
        if self.as_json:
            sys.stdout.write(report.json_line(source, saved, outcome.result, error) + "\n")
        else:
            report.add_rows(self.table, source, outcome.result if error is None else None)
            for path in saved:
                err.print(one_line(f"Image saved: {path}"), soft_wrap=True)
        return error

    def say(self) -> None:
        """Sum up."""
        if not self.as_json:
            out.print(self.table)
            for source, error in self.failures:
                name = one_line(source.name)
                out.print(coloured("red", f"{name}: {type(error).__name__}", f": {error}"), soft_wrap=True)
            err.print(report.faces_line(self.faces))
        if not self.failures:
            return
        untried = len(self.photos) - self.tried
        if untried:
            err.print(coloured("bold red", "The embedded server ended by itself", f", {untried} photos were not tried"))
        counts = f"{len(self.failures)} of {len(self.photos)} photos withheld"
        err.print(coloured("bold red", counts, f", {self.tried - len(self.failures)} anonymised"))
