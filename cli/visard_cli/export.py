"""The command `visard export`: checkpoints in, a verified model repository out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from visard_cli import report
from visard_cli.console import err, out, progress_line, say
from visard_cli.derived import Fields, derived
from visard_cli.exit_codes import exit_help
from visard_errors.extras import needs
from visard_export.options import ExportOptions

EPILOG = (
    "Example: visard export models/ --classifier gender.pth --to-male to_male_net_G.pth "
    "--to-female to_female_net_G.pth --precision fp16 --profile gpu"
    f"\n\n{exit_help(3, 5, 6, 7, 8)}"
)


@derived
def export(
    target: Annotated[Path, typer.Argument(help="Folder for the model repository.", show_default=False)],
    classifier: Annotated[Path, typer.Option(help="ResNet-18 checkpoint (.pth, .safetensors).", show_default=False)],
    to_male: Annotated[
        Path,
        typer.Option(
            help="Generator checkpoint: a persona generator, which serves both directions, or a published pix2pixHD.",
            show_default=False,
        ),
    ],
    to_female: Annotated[
        Path, typer.Option(help="The same persona generator, or the other pix2pixHD.", show_default=False)
    ],
    options: Annotated[ExportOptions, Fields()],
    face_photos: Annotated[
        list[Path] | None,
        typer.Option("--faces", help="Photos whose faces the exports are verified on; the sample photo by default."),
    ] = None,
) -> None:
    """Turn checkpoints into a verified, servable model repository; nothing is published out of tolerance."""
    from visard_server.embedded import SAMPLE_PHOTO, aligned_faces

    with needs("export", "exporting models"):
        from visard_export.export import export_repository
        from visard_export.repository import read_provenance

    verification = np.concatenate([aligned_faces(photo) for photo in face_photos or [SAMPLE_PHOTO]])
    with err.status("Exporting") as status:
        export_repository(
            target,
            classifier=classifier,
            to_male=to_male,
            to_female=to_female,
            faces=verification,
            options=options,
            report=progress_line(status),
        )
    say(f"Model repository ready: {target}")
    out.print(report.provenance_table(read_provenance(target)))
