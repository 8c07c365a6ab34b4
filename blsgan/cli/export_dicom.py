"""``blsgan export-dicom``: results as DICOM objects for archives and viewers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from blsgan.cli.terminal import Progress, say
from blsgan.errors import UsageError


@click.command(epilog="Example: blsgan export-dicom out --images radiographs -o dicom")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the objects."
)
@click.option(
    "--images",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder or file of radiographs and masks, found by their content; repeatable.",
)
@click.option(
    "--anonymize/--keep-identity",
    default=True,
    show_default=True,
    help="Belong to nobody, or to the source's patient and study.",
)
@click.option("--patient-id", help="Of anonymous objects.  [default: one for each patient]")
@click.option(
    "--salt",
    help="Goes into anonymous UIDs and IDs: exports with the same one meet; keep it secret.  "
    "[default: a new one]",
)
def command(
    runs: tuple[Path, ...],
    output: Path,
    images: tuple[Path, ...],
    anonymize: bool,
    patient_id: str | None,
    salt: str | None,
) -> int:
    """Write RUNS, output folders of `blsgan separate` and `blsgan jsn`, as DICOM objects.

    Layers become derived Secondary Capture images, masks a Segmentation, a measurement of
    narrowing a structured report (TID 1500); all of them refer to the radiograph.
    """
    from blsgan.clinical.export import export
    from blsgan.clinical.identity import Policy
    from blsgan.io.atomic import check_writable_folder

    if not anonymize and (patient_id is not None or salt is not None):
        raise UsageError("--keep-identity takes the source's; leave out --patient-id and --salt.")
    if patient_id is not None and not 1 <= len(patient_id.strip()) <= 64:
        raise UsageError("the patient ID is empty or longer than 64 characters; shorten it.")
    check_writable_folder(output)
    policy = Policy(not anonymize, patient_id=patient_id.strip() if patient_id else None)
    if salt is not None:
        policy = replace(policy, salt=salt)
    with Progress() as progress:
        exported = export(runs, output, images, policy, progress.track)
    whose = "anonymous" if anonymize else "of the sources' patients and studies"
    say(f"wrote {len(exported.files)} DICOM objects, {whose}, into {output}", err=False)
    for note in dict.fromkeys(exported.notes):
        say(f"note: {note}", err=False)
    for failure in exported.failures:
        click.echo(f"failed: {failure}", err=True)
    return 1 if exported.failures else 0
