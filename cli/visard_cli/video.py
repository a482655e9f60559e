"""The command `visard video`: clips in, anonymised clips out."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from visard import Client, ServerUnavailable, VisardError
from visard.policy import REASONS
from visard_cli import outputs
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
from visard_cli.report import faces_line
from visard_errors.extras import needs
from visard_preprocess.files import one_line
from visard_video.options import FORMATS, VideoOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from visard_server.triton import TritonServer
    from visard_video import VideoReport

EPILOG = f"Example: visard video interview.mp4 -o anonymised.mp4 --audio keep\n\n{exit_help(3, 4, 6, 7, 8)}"
_SHOWN_SPANS = 5


@derived
def video(
    clips: Annotated[list[Path], typer.Argument(help="Clips, in any format that FFmpeg reads.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for one clip (.mp4, .mov, .mkv), else a folder.")
    ],
    *,
    server: ServerOption = None,
    models: ModelsOption = None,
    engine: EngineOption = "auto",
    options: Annotated[VideoOptions, Fields(without=("max_pixels", "persona_key"))],
    persona_key: PersonaKeyOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per clip on standard output.")] = False,
    tls: TlsOption = False,
    ca: CaOption = None,
    token: TokenOption = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one face.")] = 120.0,
) -> None:
    """Anonymise videos: every face in every frame is swapped, one look per person and shot, or covered."""
    with needs("video", "videos"):
        from visard_video.run import anonymize_video
    targets = usage(lambda: _choose_targets(clips, output))
    options = usage(lambda: replace(options, persona_key=persona_key))
    outputs.make_folder(targets[0].parent)
    failures: list[Exception] = []
    table = _table()
    servers: list[TritonServer] = []
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
        )
        client = stack.enter_context(Client(connection))
        warn_untrained(client)
        for clip, target in zip(clips, targets, strict=True):
            try:
                with _bars(clip, show=not as_json) as progress:
                    report = anonymize_video(client, clip, target, options, progress=progress)
            except VisardError as error:
                failures.append(error)
                if as_json:
                    _json(clip, error=type(error).__name__, message=str(error))
                else:
                    err.print(coloured("red", f"{clip.name}: {type(error).__name__}", f": {error}"), soft_wrap=True)
                if isinstance(error, ServerUnavailable) and any(each.ended for each in servers):
                    break
            else:
                if as_json:
                    _json(clip, saved=str(target), **report.to_dict())
                else:
                    _say(table, clip, target, report)
    if not as_json and table.rows:
        out.print(table)
    if failures:
        raise typer.Exit(exit_code(failures[0]))


def _choose_targets(clips: list[Path], output: Path) -> list[Path]:
    """One file, or a folder in which every clip keeps its name.

    Raises:
        ValueError: a result would overwrite a clip or another result.
    """
    if output.suffix.lower() in FORMATS and not output.is_dir():
        if len(clips) > 1:
            raise ValueError(f"{len(clips)} clips need a folder, not the file {output}")
        targets = [output]
    elif output.suffix and not output.is_dir():
        raise ValueError(f"cannot write {output}: its name must end in {', '.join(FORMATS)}, or be that of a folder")
    else:
        targets = [output / (clip.name if clip.suffix.lower() in FORMATS else f"{clip.stem}.mp4") for clip in clips]
    outputs.check_apart(clips, targets, "a clip")
    return targets


@contextmanager
def _bars(clip: Path, *, show: bool) -> Iterator[Callable[[str, int, int | None], None]]:
    """Show how far both passes over a clip are."""
    words = {"look": "Finding faces", "draw": "Anonymising"}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not show) as progress:
        tasks = {stage: progress.add_task(said, total=None, start=False) for stage, said in words.items()}

        def advance(stage: str, done: int, of: int | None) -> None:
            if done == 1:
                progress.start_task(tasks[stage])
            progress.update(tasks[stage], completed=done, total=None if of is None else max(of, done))

        yield advance


def _table() -> Table:
    table = Table(title="Anonymised faces", title_justify="left")
    for heading in ("clip", "person", "seconds", "frames swapped", "covered", "why covered"):
        table.add_column(heading, overflow="fold")
    return table


def _say(table: Table, clip: Path, target: Path, report: VideoReport) -> None:
    for track in report.tracks:
        why = ", ".join(f"{count} × {REASONS[reason]}" for reason, count in track.reasons.items())
        covered = track.frames["covered"]
        table.add_row(
            one_line(clip.name),
            str(track.number + 1),
            f"{track.from_s:.2f}–{track.to_s:.2f}",
            str(track.frames["swapped"]),
            coloured("yellow", str(covered)) if covered else "0",
            why,
        )
    err.print(f"Clip saved: {target}", soft_wrap=True)
    if report.may_be_cut_off:
        words = f"Only {report.frames} of about {report.stated_frames} frames came: the clip may be cut off"
        err.print(coloured("yellow", words))
    if report.hdr is not None:
        err.print(f"High dynamic range ({report.hdr}) was mapped to the standard one", soft_wrap=True)
    if report.sound == "drop":
        err.print("The sound was left out: --audio keep or --audio disguise has it", soft_wrap=True)
    if report.sound == "keep":
        err.print("The sound is as it was: voices tell who speaks", soft_wrap=True)
    spans = [f"{span.from_s:.2f}–{span.to_s:.2f} s" for span in report.unsure]
    if spans:
        more = f" and {len(spans) - _SHOWN_SPANS} more (--json has all)" if len(spans) > _SHOWN_SPANS else ""
        err.print(f"Worth a look, a face was followed but not seen: {', '.join(spans[:_SHOWN_SPANS])}{more}")
    err.print(faces_line(report.outcomes))


def _json(clip: Path, **values: Any) -> None:
    sys.stdout.write(json.dumps({"clip": str(clip), **values}) + "\n")
