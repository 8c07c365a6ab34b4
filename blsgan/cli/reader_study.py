"""``blsgan reader-study``: the visual Turing test as a page, and its score."""

from __future__ import annotations

from pathlib import Path

import click

from blsgan.cli.group import Group
from blsgan.cli.terminal import Progress, say
from blsgan.errors import UsageError


@click.group(cls=Group, epilog="Example: blsgan reader-study build out")
def command() -> None:
    """Let readers judge whether separated bones look real, and score their answers."""


@command.command("build", epilog="Example: blsgan reader-study build out -o study.html")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("study.html"),
    show_default=True,
    help="The page; the key is written beside it as STUDY-key.json.",
)
@click.option(
    "--count",
    type=click.IntRange(4, 400),
    default=60,
    show_default=True,
    help="Pictures, half of them real; a multiple of 4.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of choice and order."
)
@click.option(
    "--min-overlap",
    type=click.IntRange(1),
    default=150,
    show_default=True,
    help="Pixels of overlap from which a layer counts as generated.",
)
def build_command(folder: Path, output: Path, count: int, seed: int, min_overlap: int) -> None:
    """Build a study from FOLDER, an output folder of `blsgan separate`.

    Results without overlap give the real bones, results with overlap the generated ones. Keep the
    key to yourself; readers get the page alone.
    """
    from blsgan.io.atomic import check_writable_folder
    from blsgan.report.study import build_study

    check_writable_folder(output.parent)
    with Progress() as progress:
        study = build_study(
            folder, output, count=count, seed=seed, min_overlap_px=min_overlap, track=progress.track
        )
    say(f"study {study.study}: {len(study.items)} pictures; wrote {study.page}", err=False)
    say(f"the truth is in {study.key}: keep it from the readers", err=False)


@command.command(
    "score", epilog="Example: blsgan reader-study score anna.csv ben.csv --key study-key.json"
)
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_path",
    required=True,
    type=click.Path(path_type=Path),
    help="The study's STUDY-key.json.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write a JSON file.")
def score_command(
    answers: tuple[Path, ...], key_path: Path, seed: int, output: Path | None
) -> None:
    """Score ANSWERS, one CSV file for each reader, against the key.

    Prints accuracy with its confidence interval against chance, sensitivity and specificity,
    Fleiss' kappa between the readers, and the grades of real and generated bones.
    """
    from blsgan.io.atomic import ESCAPED, atomic_path, check_writable_folder
    from blsgan.report.scoring import incomplete, markdown, read_answers, read_key, score

    if output is not None:
        if output.suffix.lower() != ".json":
            raise UsageError(f"{output} does not end in .json; name the file, such as score.json.")
        check_writable_folder(output.parent)
    key = read_key(key_path)
    found = score(key, [read_answers(path, key) for path in answers], seed)
    if output is not None:
        text = found.record().text()
        with atomic_path(output) as temporary:
            temporary.write_text(text, encoding="utf-8", errors=ESCAPED)
        say(f"wrote {output}")
    click.echo(markdown(found), nl=False)
    for sentence in incomplete(found.missing, len(key.truth)):
        say(f"note: {sentence}")
