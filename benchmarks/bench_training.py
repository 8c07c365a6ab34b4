"""A training step of ``lite`` and of ``paper`` against a naive loop, and where the time goes.

    python benchmarks/bench_training.py -o benchmarks/results/training.csv

The naive loop is how such a method is usually written: for every sample files are decoded and the
overlap is composed with OpenCV, the generator runs twice in a step (once for the other player or
for the log, once to learn), losses are eager float32 PyTorch, and each is read with ``.item()``.
Both train networks of the same size on batches of the same kind and size, from the same files, in
one process and in turns; ``lite`` has no second player, ``paper`` has. Our networks run in the
preset's precision (bfloat16, or float32 on a processor without its instructions), the naive ones in
float32, as they are when nobody says otherwise; the column ``precision`` says which.
Peak memory is that of a process of its own for each of the four, in the first stage. A stage with
large crops in some steps is timed over steps of both sizes; its row is of one step on average.
Without ``--data`` the joints are phantoms. ``--check`` ends with status 1 where data take more than
3 % of a step.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from blsgan import __version__
from blsgan.data.dataset import load_root
from blsgan.data.layout import MIN_OVERLAP_PX, JointImage, overlap_px, read_joint
from blsgan.data.splits import is_validation, select
from blsgan.io.atomic import atomic_path
from blsgan.machine import commit_of, processor
from blsgan.models import build_generator
from blsgan.models.generator import Generator
from blsgan.models.supervisor import Supervisor
from blsgan.ops import reference
from blsgan.synthesis.overlap import PROTOCOL_SHIFT_PX, SyntheticOverlap, synthesize_overlap
from blsgan.synthesis.phantoms import joint_phantom
from blsgan.training.config import LARGE_CROP_EVERY, Stage, TrainingConfig, load_config, stages_of
from blsgan.training.run_folder import device_of
from blsgan.training.separation import SeparationTrainer
from blsgan.training.sources import load_sources

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("lite", "paper")
MOST_DATA = 0.03  # of a step's time
PARTS = ("data", "generator", "supervisor", "optimiser")
PUBLIC_COUNTS = (537, 402)  # training joints of the public dataset: without and with an overlap


class Clock:
    """Seconds of each part of a step; on a GPU each part is waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        wait(self._device)
        started = time.perf_counter()
        yield
        wait(self._device)
        self.seconds[part] += time.perf_counter() - started

    def shares(self) -> dict[str, float]:
        """Of each part in all of them."""
        total = sum(self.seconds.values())
        return {part: self.seconds[part] / total for part in PARTS}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class NaiveData:
    """Joints read from their files whenever they are drawn."""

    free: list[JointImage]
    overlapped: list[JointImage]
    rng: np.random.Generator

    @classmethod
    def of(cls, images: Sequence[JointImage]) -> NaiveData:
        """The training images, sorted by whether they overlap."""
        free, overlapped = [], []
        for joint in images:
            arrays = read_joint(joint)
            if overlap_px(arrays.masks) >= MIN_OVERLAP_PX:
                overlapped.append(joint)
            elif arrays.background is not None:
                free.append(joint)
        return cls(free, overlapped, np.random.default_rng(0))

    def synthetic(self) -> SyntheticOverlap:
        """One pair, composed with OpenCV."""
        arrays = read_joint(self.free[self.rng.integers(len(self.free))])
        assert arrays.background is not None
        low, high = PROTOCOL_SHIFT_PX
        down, up = self.rng.integers(low, high + 1, size=2)
        return synthesize_overlap(
            arrays.image, arrays.masks, arrays.background, down_px=float(down), up_px=float(up)
        )

    def real(self) -> tuple[np.ndarray, np.ndarray]:
        """One real overlap: image [H,W] in [0,1] and masks [2,H,W]."""
        arrays = read_joint(self.overlapped[self.rng.integers(len(self.overlapped))])
        return arrays.image.astype(np.float32) / 255, arrays.masks


def to_tensor(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """A stack of float32 arrays on the device."""
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(device)


def cut(array: np.ndarray, overlap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A crop [...,h,w] around the overlap, zoomed and turned as lite's crops are."""
    rows, columns = np.nonzero(overlap)
    centre = (float(columns.mean()), float(rows.mean())) if len(rows) else (128.0, 128.0)
    matrix = cv2.getRotationMatrix2D(centre, 2.0, 1.05)
    matrix[:, 2] += (size[1] / 2 - centre[0], size[0] / 2 - centre[1])
    planes = array.reshape(-1, *array.shape[-2:]).astype(np.float32)
    moved = [cv2.warpAffine(plane, matrix, (size[1], size[0])) for plane in planes]
    return np.stack(moved).reshape(*array.shape[:-2], *size)


class NaivePaper:
    """The published step as it is usually written."""

    def __init__(
        self, config: TrainingConfig, stage: Stage, data: NaiveData, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.stage, self.data, self.device = stage, data, device
        self.generator = build_generator(config.model.architecture, config.model.configuration).to(
            device
        )
        self.supervisor = Supervisor(2, config.supervisor.widths).to(device)
        self.optimisers = [
            torch.optim.Adam(self.generator.parameters(), 1e-5, betas=(0.5, 0.999)),
            torch.optim.Adam(self.supervisor.parameters(), 1e-6, betas=(0.5, 0.999)),
        ]

    def step(self) -> list[float]:
        """One step; what it would log."""
        size = self.stage.data.size
        pairs = [self.data.synthetic() for _ in range(self.stage.data.synthetic)]
        image = to_tensor([cv2.resize(p.image, (size, size)) for p in pairs], self.device)[:, None]
        masks, layers = (
            to_tensor(
                [
                    np.stack(
                        [
                            cv2.resize(plane.astype(np.float32), (size, size))
                            for plane in getattr(p, name)
                        ]
                    )
                    for p in pairs
                ],
                self.device,
            )
            for name in ("masks", "layers")
        )
        masks = (masks > 0.5).float()
        logged = []

        # The supervisor's turn, with layers generated for it.
        generated, _ = free_layers(self.generator, image, masks)
        self.optimisers[1].zero_grad()
        losses = [
            reference.supervisor_loss(self.supervisor(image * masks), masks, "exclusive", "bce"),
            reference.supervisor_loss(self.supervisor(layers), masks, "masks", "bce"),
            reference.supervisor_loss(self.supervisor(generated.detach()), masks, "zeros", "bce"),
        ]
        logged += [loss.item() for loss in losses]
        torch.stack(losses).mean().backward()
        self.optimisers[1].step()

        # The generator's turn, with the same layers generated again.
        generated, k = free_layers(self.generator, image, masks)
        self.optimisers[0].zero_grad()
        weights = self.stage.loss
        terms = [
            weights.supervisor * reference.supervisor_loss(self.supervisor(generated), masks),
            weights.reconstruction * reference.reconstruction_loss(generated, masks, k, image),
            weights.layer * reference.layer_loss(generated, layers, masks),
        ]
        logged += [term.item() for term in terms]
        torch.stack(terms).sum().backward()
        self.optimisers[0].step()
        return logged


def free_layers(generator: Generator, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """sigmoid(logits) * masks, and k."""
    logits, k = generator(image, masks)
    return torch.sigmoid(logits) * masks, k


class NaiveLite:
    """The lite recipe on the same number of crops, written the same way."""

    def __init__(
        self, config: TrainingConfig, stage: Stage, data: NaiveData, device: torch.device
    ) -> None:
        torch.manual_seed(0)
        self.stage, self.data, self.device = stage, data, device
        self.generator = build_generator(config.model.architecture, config.model.configuration).to(
            device
        )
        optimiser = stage.optimiser
        self.optimiser = torch.optim.AdamW(
            self.generator.parameters(),
            optimiser.learning_rate,
            betas=optimiser.betas,
            weight_decay=optimiser.weight_decay,
        )

    def step(self) -> list[float]:
        """One step; what it would log."""
        data, size = self.stage.data, self.stage.data.crop
        images, masks, truths, tissues = [], [], [], []
        for _ in range(data.synthetic):
            pair = self.data.synthetic()
            images.append(cut(pair.image, pair.overlap, size))
            masks.append(cut(pair.masks, pair.overlap, size) > 0.5)
            truths.append(cut(pair.layers, pair.overlap, size))
            tissues.append(pair.soft_tissue)
        for _ in range(data.visits):  # the truth's values do not matter for the time
            image, pair_masks = self.data.real()
            overlap = pair_masks.all(axis=0)
            images.append(cut(image, overlap, size))
            masks.append(cut(pair_masks, overlap, size) > 0.5)
            truths.append(cut(np.stack((image, image)), overlap, size))
            tissues.append(0.5)
        image = to_tensor(images, self.device)[:, None]
        covered, truth = to_tensor(masks, self.device), to_tensor(truths, self.device)
        k_true = torch.tensor(tissues, dtype=torch.float32, device=self.device)[:, None, None, None]
        overlap_mask = covered.prod(dim=1, keepdim=True)

        with torch.no_grad():  # for the log
            logits, k = self.generator(image, covered)
            layers = reference.split_attenuation(logits, image, covered, k)
        pixels = overlap_mask.sum(dim=(1, 2, 3)).clamp(min=1)
        errors = ((layers - truth) ** 2 * overlap_mask).sum(dim=(1, 2, 3)) / pixels
        logged = [10 * torch.log10(error + 1e-5).item() for error in errors]

        logits, k = self.generator(image, covered)
        layers = reference.split_attenuation(logits, image, covered, k)
        errors = ((layers - truth) ** 2 * overlap_mask).sum(dim=(1, 2, 3)) / pixels
        term = torch.log10(errors + self.stage.loss.mse_floor).mean()
        tissue = self.stage.loss.soft_tissue * (k - k_true).abs().mean()
        logged += [term.item(), tissue.item()]
        self.optimiser.zero_grad()
        (term + tissue).backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.stage.optimiser.clip_norm or 1e9)
        self.optimiser.step()
        return logged


def write_phantoms(root: Path, joints: int) -> None:
    """Joint phantoms in the public dataset's layout: each joint without and with an overlap."""
    folder = "Dataset_cases_anonymization"
    names = [f"{i:05d}_L_2" for i in range(1000)]
    chosen = [name for name in names if not is_validation(name)][:joints]
    chosen += [name for name in names if is_validation(name)][:2]
    entries = []
    for seed, joint in enumerate(chosen):
        for visit, gap in (("a", -14.0), ("b", 3.0)):
            phantom = joint_phantom(seed, gap_px=gap)
            pictures = {
                "image": (f"{folder}/{joint}/{visit}.jpg", phantom.image),
                "upper": (f"{folder}/{joint}/{visit}_mask_upper.bmp", phantom.masks[0]),
                "lower": (f"{folder}/{joint}/{visit}_mask_lower.bmp", phantom.masks[1]),
                "background": (f"{folder}/background/{joint}_{visit}.jpg", phantom.background),
            }
            for path, picture in pictures.values():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                grey = np.round(picture.astype(np.float32) * 255).astype(np.uint8)
                Image.fromarray(grey).save(root / path)
            entries.append({key: path for key, (path, _) in pictures.items()})
    (root / "LS_K1_all_train").write_text(json.dumps(entries))


@dataclass
class Measurement:
    """Steps of one loop: seconds of each, peak memory, and where our own spends its time."""

    name: str
    seconds: list[float]
    peak_mb: float
    shares: dict[str, float]
    precision: str

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, share))


def our_step(
    config: TrainingConfig, root: Path, cache: Path, device: torch.device, stage: int
) -> tuple[SeparationTrainer, Callable[[], object]]:
    """A trainer that stands at a stage, and what makes the steps in which its crops' sizes recur
    (:func:`cycle`)."""
    trainer = SeparationTrainer(
        config, load_sources(config, load_root(root), cache, device), device
    )
    at = trainer.stages[min(stage, len(trainer.stages) - 1)]
    trainer.move_to(at.first)

    def steps() -> None:
        for turn in range(cycle(at)):
            trainer.step = at.first + turn  # a stage shall not end under the clock
            trainer.train_step()

    return trainer, steps


def cycle(stage: Stage) -> int:
    """The number of steps in which the crops' sizes recur."""
    return 1 if stage.data.large_crop is None else LARGE_CROP_EVERY


def naive_step(
    config: TrainingConfig, stage: Stage, root: Path, device: torch.device
) -> Callable[[], object]:
    """The naive loop's step for a stage."""
    kind = NaivePaper if stage.data.pairs == "images" else NaiveLite
    return kind(config, stage, NaiveData.of(select(load_root(root), "train")), device).step


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    wait(device)
    started = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - started


def peak_mb(
    preset: str,
    changes: Sequence[str],
    which: str,
    root: Path,
    cache: Path,
    device: str,
    threads: int,
) -> float:
    """Peak memory in MB of a process that makes two steps; of the GPU where one is used."""
    # A child's peak counts its parent's at the fork, so a bare Python starts it, not this one.
    watch = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--device",
        device,
        "--threads",
        str(threads),
        "--data",
        str(root),
        "--cache",
        str(cache),
        "--memory-of",
        f"{preset}:{which}",
    ]
    for change in changes:
        command += [f"--{preset}-set", change]
    done = subprocess.run(
        [sys.executable, "-I", "-c", watch, *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"{preset}, {which}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def measure_memory(
    which: str, config: TrainingConfig, root: Path, cache: Path, device: torch.device
) -> float:
    """Makes two steps and returns the peak in MB: what this process was started for."""
    if which == "naive":  # without our own, whose memory would count as the naive loop's
        step = naive_step(config, stages_of(config, lambda data: 1)[0], root, device)
    else:
        _, step = our_step(config, root, cache, device, 0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step()
    step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    # ru_maxrss: kilobytes on Linux, bytes on macOS.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e3)


def schedule_hours(seconds: Sequence[float], config: TrainingConfig) -> float:
    """Hours of the whole schedule on the public dataset, from a step of each stage."""
    total = 0.0
    for stage, one in zip(config.stages, seconds, strict=True):
        free, real = PUBLIC_COUNTS
        epoch = max(
            -(-free // stage.data.synthetic), -(-real // stage.data.real) if stage.data.real else 0
        )
        total += one * (stage.steps if stage.steps is not None else (stage.epochs or 0) * epoch)
    return total / 3600


def measured_on(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def compare(
    preset: str,
    changes: Sequence[str],
    root: Path,
    cache: Path,
    device: torch.device,
    threads: int,
    rounds: int,
) -> list[Measurement]:
    """Our step and the naive one in turns, each stage of ours, and the peak memory of both."""
    config = load_config(preset, changes)
    # While this process is small: ours, the naive loop and a child beside them may not fit.
    peaks = {
        which: peak_mb(preset, changes, which, root, cache, str(device), threads)
        for which in ("blsgan", "naive")
    }
    trainer, ours = our_step(config, root, cache, device, 0)
    naive = naive_step(config, trainer.stages[0], root, device)
    ours()
    naive()
    clock = trainer.phase = Clock(device)
    times: dict[str, list[float]] = {"blsgan": [], "naive": []}
    for _ in range(rounds):
        times["blsgan"].append(timed(ours, device))
        times["naive"].append(timed(naive, device))
    del naive
    rows = [
        Measurement(
            f"{preset}, {name}",
            seconds,
            peaks[name],
            *((clock.shares(), trainer.precision) if name == "blsgan" else ({}, "float32")),
        )
        for name, seconds in times.items()
    ]
    for index, stage in enumerate(trainer.stages[1:], start=1):
        other, step = our_step(config, root, cache, device, index)
        step()
        clock = other.phase = Clock(device)
        seconds = [timed(step, device) / cycle(stage) for _ in range(rounds)]
        rows.append(
            Measurement(
                f"{preset}, blsgan, stage {stage.name}",
                seconds,
                0.0,
                clock.shares(),
                other.precision,
            )
        )
    return rows


@click.command()
@click.option(
    "--data",
    "root",
    type=click.Path(path_type=Path),
    help="The dataset's folder Data; phantoms without it.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder for the registered visits; a temporary one by default.",
)
@click.option(
    "--joints",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Phantoms of training joints.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--preset",
    "presets",
    type=click.Choice(PRESETS),
    multiple=True,
    default=PRESETS,
    show_default=True,
)
@click.option("--lite-set", multiple=True, metavar="KEY=VALUE", help="As blsgan train --set.")
@click.option("--paper-set", multiple=True, metavar="KEY=VALUE", help="As blsgan train --set.")
@click.option("--memory-of", hidden=True, help="PRESET:blsgan or PRESET:naive, for a child.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="CSV file.")
@click.option("--check", is_flag=True, help="Fail where data take more than 3 %.")
def main(
    root: Path | None,
    cache: Path | None,
    joints: int,
    device: str,
    threads: int,
    rounds: int,
    presets: tuple[str, ...],
    lite_set: tuple[str, ...],
    paper_set: tuple[str, ...],
    memory_of: str | None,
    output: Path | None,
    check: bool,
) -> None:
    """Measure training steps."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    target = device_of(device)
    # Validation is no part of a step: as little of it as there can be.
    changes = {"lite": ("data.validation=1", *lite_set), "paper": ("data.validation=1", *paper_set)}
    if memory_of is not None:
        preset, which = memory_of.split(":")
        assert root is not None
        assert cache is not None
        config = load_config(preset, changes[preset])
        click.echo(measure_memory(which, config, root, cache, target))
        return
    load = os.getloadavg()[0]
    if load > 0.5:
        click.echo(
            f"note: the load average is {load:.1f}; only the ratios mean something", err=True
        )
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            root = Path(folder) / "Data"
            write_phantoms(root, joints)
        cache = Path(folder) if cache is None else cache
        rows: dict[str, list[Measurement]] = {
            preset: compare(preset, changes[preset], root, cache, target, threads, rounds)
            for preset in presets
        }
    missed, table = [], []
    for preset, measured in rows.items():
        ours, naive = measured[0].percentile(50), measured[1].percentile(50)
        ratio = naive / ours
        for row in measured:
            table.append(
                {
                    "measurement": row.name,
                    "p20_s": f"{row.percentile(20):.3f}",
                    "p50_s": f"{row.percentile(50):.3f}",
                    "p80_s": f"{row.percentile(80):.3f}",
                    "steps": len(row.seconds),
                    "naive_over_this": f"{naive / row.percentile(50):.2f}" if row.peak_mb else "",
                    "peak_mb": f"{row.peak_mb:.0f}" if row.peak_mb else "",
                    **{
                        f"{part}_percent": f"{100 * row.shares[part]:.1f}" if row.shares else ""
                        for part in PARTS
                    },
                    "precision": row.precision,
                    "threads": threads,
                    "device": measured_on(target),
                    "load_average": f"{load:.1f}",
                    "torch": version("torch"),
                    "blsgan": __version__,
                    "commit": commit_of(),
                }
            )
            split = ", ".join(f"{part} {100 * share:.1f} %" for part, share in row.shares.items())
            click.echo(
                f"{row.name:36} {row.precision:8} p20 {row.percentile(20):8.3f} "
                f"p50 {row.percentile(50):8.3f} p80 {row.percentile(80):8.3f} s  "
                f"{row.peak_mb:6.0f} MB  {split}"
            )
        click.echo(f"{preset}: {ratio:.2f} times as fast as the naive loop.")
        missed += [
            f"{row.name}: data {100 * row.shares['data']:.1f} %"
            for row in measured
            if row.shares and row.shares["data"] > MOST_DATA
        ]
        if preset == "paper":
            config = load_config(preset, changes[preset])
            stages = [measured[0], *measured[2:]]
            if len(stages) == len(config.stages):
                hours = schedule_hours([row.percentile(50) for row in stages], config)
                click.echo(
                    f"paper: the whole schedule takes {hours:.2f} h on {measured_on(target)}, "
                    f"with the public dataset's {PUBLIC_COUNTS[0]} + {PUBLIC_COUNTS[1]} "
                    "training images."
                )
    if output is not None:
        with atomic_path(output) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    if check and missed:
        raise SystemExit(f"too much for data: {', '.join(missed)}")


if __name__ == "__main__":
    main()
