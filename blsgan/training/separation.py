"""Training the separator: two players, stages, and what a step of them is."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from blsgan.data.layout import JointImage
from blsgan.errors import InputError, UsageError
from blsgan.models import build_generator, load_generator
from blsgan.models.backbones import BackboneGenerator
from blsgan.models.generator import Generator, Learner
from blsgan.models.supervisor import Supervisor
from blsgan.progress import Track
from blsgan.tasks.task import SEPARATION
from blsgan.training.config import Stage, SupervisorConfig, TrainingConfig, stages_of
from blsgan.training.distributed import World
from blsgan.training.objective import (
    layer_errors,
    objective,
    supervisor_batch,
    supervisor_objective,
)
from blsgan.training.optimisers import (
    Optimisers,
    learning_rate_share,
    optimiser_state,
    restore_optimiser,
    update_average,
)
from blsgan.training.pairs import PairBatch
from blsgan.training.sources import Sources, check_sources, load_sources
from blsgan.training.trainer import Recipe, Terms, Trainer, placed


class SeparationTrainer(Trainer):
    """Sources, generator, its average, supervisor, optimisers, and the step.

    Args:
        config: the run's configuration.
        sources: where batches come from (``load_sources``).
        device: where the networks run.
        world: the processes that train together.

    Attributes:
        stages: the run's stages; ``steps`` is the last one's end.
        phase: called with the name of each part of a step (data, generator, supervisor, optimiser),
            gives the context that it runs in; a benchmark replaces it by a clock.

    Raises:
        WeightsError: the architecture or its configuration is none.
        UsageError: images or crops of a size that does not fit the network.
    """

    def __init__(
        self,
        config: TrainingConfig,
        sources: Sources,
        device: torch.device,
        world: World | None = None,
    ) -> None:
        super().__init__(config, device, world)
        self.config = config
        self.phase: Callable[[str], contextlib.AbstractContextManager[Any]] = record_function
        self._sources = sources
        self.stages = stages_of(config, sources.epoch)
        self.steps = self.stages[-1].last
        generator = first_generator(config)
        self.generator = placed(generator, device)
        self.average: Generator = copy.deepcopy(self.generator)
        self.average.requires_grad_(False).eval()
        self._parameters: list[Tensor] = list(self.generator.parameters())
        self.supervisor: Supervisor | None = None
        if config.has_supervisor():
            supervisor = Supervisor(generator.layers, config.supervisor.widths)
            self.supervisor = placed(supervisor, device)
        self._random = torch.Generator().manual_seed(config.seed + 1)
        self._begin_stage()

    @property
    def stage(self) -> Stage:
        """The stage of the next step, or the last one when there is none."""
        return next((s for s in self.stages if self.step < s.last), self.stages[-1])

    def part(self) -> tuple[str, int]:
        return self.stage.name, self.stage.last

    @property
    def supervised(self) -> bool:
        """Whether the supervisor takes part in the next step."""
        return self.supervisor is not None and self.stage.loss.supervisor > 0

    def move_to(self, step: int) -> None:
        """Stands at a step as if all before it had been made, with the weights as they are."""
        self.step = step
        self._begin_stage()

    def _begin_stage(self) -> None:
        """Fresh optimisers, and the networks as this stage runs them."""
        stage = self.stage
        self._optimisers = Optimisers(self.generator, stage.optimiser, bfloat16=self._bfloat16)
        # A free head does not need k for its layers; MONAI's networks have heads for other uses.
        unused = self.generator.head == "free" or isinstance(self.generator, BackboneGenerator)
        self._network = self._as_run(self.world.wrap(Learner(self.generator), unused=unused))
        if self.supervisor is not None and self.supervised:
            self._supervisor_optimiser = torch.optim.Adam(
                self.supervisor.parameters(),
                lr=stage.optimiser.supervisor_learning_rate,
                betas=stage.optimiser.betas,
            )
            self._judging_supervisor = self._as_run(self.supervisor)
            self._taught_supervisor = self._as_run(self.world.wrap(self.supervisor, unused=False))

    def _as_run(self, network: nn.Module) -> nn.Module:
        return cast(nn.Module, torch.compile(network)) if self.config.compile else network

    def start_from(self, weights: Path) -> None:
        """Replaces the random first weights by those of a ``.safetensors`` file.

        Raises:
            WeightsError: the file cannot be read.
            InputError: it is of another architecture or size than the configuration's model.
        """
        for module in (self.generator, self.average):
            _load_first(module, weights, self.config)

    def draw(self) -> PairBatch:
        """The next step's batch; random numbers move on, the step does not."""
        return self._sources.draw(self.stage, self.step, self._random)

    def train_step(self, batch: PairBatch | None = None) -> Terms:
        """One step of both players; the terms stay on the device.

        Args:
            batch: what to learn from, synthetic pairs first; drawn by default.
        """
        stage = self.stage
        if batch is None:
            with self.phase("data"):
                batch = self.draw()
        with self.phase("generator"):
            # Dropout's draws hang on the step alone: a resumed run goes on as it would have.
            torch.manual_seed(self.config.seed + self.step * self.world.size + self.world.rank)
            layers, separated, soft_tissue = self._separate(batch)
            verdict = self._judge(separated) if self.supervised else None
            terms = objective(
                layers,
                separated,
                soft_tissue,
                batch,
                stage.loss,
                synthetic=stage.data.synthetic,
                verdict=verdict,
                supports=self.generator.supports(batch.masks),
                law=self.generator.law,
            )
            if not stage.data.visits:
                del terms.parts["visits_db"]  # of nothing: 0
            self.generator.zero_grad()
            terms.total.backward()
        with self.phase("optimiser"):
            if stage.optimiser.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._parameters, stage.optimiser.clip_norm)
            self._optimisers.step(
                learning_rate_share(self.step - stage.first, stage.steps, stage.optimiser)
            )
            self._update_average(stage)
        if self.supervised:
            terms.parts["supervisor_own"] = self._teach(separated, batch, stage)
        self.step += 1
        if self.step == stage.last and self.step < self.steps:
            self._begin_stage()
        return terms

    def _separate(self, batch: PairBatch) -> tuple[Tensor, ...]:
        """What the generator has learnt of the whole batch (:meth:`Generator.learnt`), of which
        this process computes its rows."""
        rows = self.world.rows
        with self.autocast():
            # Plain strides: channels-last ones make pooling of a single channel three times as slow
            # on a CPU, and the first convolution turns its input round by itself.
            learnt = self._network(rows(batch.image).contiguous(), rows(batch.masks).contiguous())
        return tuple(self.world.gather(values, len(batch.image)) for values in learnt)

    def _judge(self, layers: Tensor) -> Tensor:
        """The supervisor's logits for layers, through which gradients flow to the generator."""
        assert self.supervisor is not None
        self.supervisor.requires_grad_(False)
        with self.autocast():
            logits = self._judging_supervisor(self.world.rows(layers))
        self.supervisor.requires_grad_(True)
        return self.world.gather(logits.float(), len(layers), summed=False)

    def _teach(self, layers: Tensor, batch: PairBatch, stage: Stage) -> Tensor:
        """The supervisor's step on the layers that the generator has just been judged by."""
        assert self.supervisor is not None
        with self.phase("supervisor"):
            given = supervisor_batch(layers, batch, stage.data.synthetic)
            with self.autocast():
                logits = self._taught_supervisor(self.world.rows(given.layers))
            loss = supervisor_objective(self.world.gather(logits.float(), len(given.layers)), given)
            self.supervisor.zero_grad()
            loss.backward()
        with self.phase("optimiser"):
            if stage.optimiser.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.supervisor.parameters(), stage.optimiser.clip_norm)
            self._supervisor_optimiser.step()
        return loss

    def _update_average(self, stage: Stage) -> None:
        update_average(self.average, self._parameters, stage.optimiser.ema_decay, self.step)
        with torch.no_grad():
            for kept, current in zip(self.average.buffers(), self.generator.buffers(), strict=True):
                kept.copy_(current)  # running statistics of normalised architectures

    def validate(self) -> dict[str, float]:
        """PSNR in dB of the averaged weights on pairs of validation joints, in the overlap.

        ``synthetic_psnr_db`` on synthetic overlaps of the protocol's settings,
        ``upper_psnr_db`` and ``lower_psnr_db`` on real overlaps with another visit's truth. Quick
        stand-ins for ``blsgan evaluate``, which sees whole images through ``Separator``.
        """
        figures = {}
        batch = self._sources.validation
        layers, soft_tissue = self._separate_all(batch)
        errors, usable = layer_errors(layers, batch, self.average.supports(batch.masks))
        figures["synthetic_psnr_db"] = _mean_psnr(errors.mean(dim=1)[usable.all(dim=1)])
        if soft_tissue.dim() == 1:
            figures["soft_tissue_error"] = float((soft_tissue - batch.soft_tissue).abs().mean())
        batch_visits = self._sources.validation_visits
        if batch_visits is not None:
            layers, _ = self._separate_all(batch_visits)
            supports = self.average.supports(batch_visits.masks)
            errors, usable = layer_errors(layers, batch_visits, supports)
            figures["upper_psnr_db"] = _mean_psnr(errors[:, 0][usable[:, 0]])
            figures["lower_psnr_db"] = _mean_psnr(errors[:, 1][usable[:, 1]])
        return figures

    def picture(self) -> Tensor:
        """A row for each of four pairs: image, predicted and true layers, error times four."""
        pairs = self._sources.validation.rows(slice(4))
        layers = self._separate_all(pairs)[0]
        error = 4 * (layers - pairs.layers).abs() * pairs.valid
        row = torch.cat((pairs.image, layers, pairs.layers, error), dim=1)
        return torch.cat([torch.cat(list(planes), dim=1) for planes in row])

    def _separate_all(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        parts = []
        with torch.inference_mode():
            for start in range(0, len(batch.image), 32):
                part = slice(start, start + 32)
                image, masks = batch.image[part].to(self.device), batch.masks[part].to(self.device)
                layers, k = self.average.separate(image, masks)
                parts.append((layers.cpu(), k.cpu()))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def state(self) -> dict[str, Tensor]:
        state = {"random": self._random.get_state()}
        state |= {f"optimiser.{k}": v for k, v in self._optimisers.state().items()}
        if self.supervised:
            own = optimiser_state(self._supervisor_optimiser)
            state |= {f"supervisor_optimiser.{k}": v for k, v in own.items()}
        return state

    def restore_state(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._begin_stage()
        self._optimisers.restore(groups["optimiser"])
        if self.supervised:
            restore_optimiser(self._supervisor_optimiser, groups["supervisor_optimiser"])
        self._random.set_state(groups["random"][""])

    def modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"generator": self.generator, "average": self.average}
        if self.supervisor is not None:
            modules["supervisor"] = self.supervisor
        return modules


def first_generator(config: TrainingConfig, weights: Path | None = None) -> Generator:
    """The generator that a run starts with, checked against what the run will do with it.

    Args:
        config: the run's configuration.
        weights: a ``.safetensors`` file in the place of random weights.

    Raises:
        WeightsError: the architecture or its configuration is none, or the file cannot be read.
        UsageError: images or crops of a size that does not fit the network.
        InputError: the file is of another architecture or size than the configuration's model.
    """
    torch.manual_seed(config.seed)
    generator = build_generator(config.model.architecture, config.model.configuration)
    _check_sizes(generator, stages_of(config, lambda data: 1), config.supervisor)
    if weights is not None:
        _load_first(generator, weights, config)
    return generator


def _load_first(generator: Generator, weights: Path, config: TrainingConfig) -> None:
    given = load_generator(weights)
    try:
        generator.load_state_dict(given.state_dict())
    except RuntimeError as error:
        raise InputError(
            f"{weights}: is not of the configuration's model "
            f"({config.model.architecture}, {config.model.configuration}); give other "
            "weights or set model.configuration to theirs"
        ) from error


def _check_sizes(generator: Generator, stages: Sequence[Stage], config: SupervisorConfig) -> None:
    for stage in stages:
        data = stage.data
        sizes = {"data.size": (data.size, data.size)}
        if data.pairs == "crops":
            sizes = {"data.crop": data.crop, "data.large_crop": data.large_crop or data.crop}
        needs = {f"architecture '{generator.architecture}'": generator.size_multiple}
        if config.enabled and stage.loss.supervisor > 0:
            needs["supervisor"] = 2 ** (len(config.widths) - 1)
        for key, size in sizes.items():
            for network, multiple in needs.items():
                if any(side % multiple for side in size):
                    raise UsageError(
                        f"key '{key}' is {size[0]}x{size[1]} px; the {network} needs "
                        f"multiples of {multiple}"
                    )
            if size[0] * size[1] < generator.least_px:
                raise UsageError(
                    f"key '{key}' is {size[0]}x{size[1]} px; the architecture "
                    f"'{generator.architecture}' needs more, as in {size[0]}x"
                    f"{2 * size[1]}"
                )


def _load(
    config: TrainingConfig,
    images: Sequence[JointImage],
    run: Path,
    device: torch.device,
    progress: Track,
) -> Sources:
    _choose_kernels(config, device)
    return load_sources(config, images, run, device, progress)


def _choose_kernels(config: TrainingConfig, device: torch.device) -> None:
    """Which kernels a run may use."""
    torch.use_deterministic_algorithms(config.deterministic)
    if device.type == "cuda":
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not config.deterministic


def _mean_psnr(errors: Tensor) -> float:
    return float((-10 * torch.log10(errors.clamp(min=1e-10))).mean()) if len(errors) else math.nan


RECIPE = Recipe(
    SEPARATION,
    limits="two bones; images like those of the training joints; masks taken as given",
    check=first_generator,
    check_data=check_sources,
    load=_load,
    trainer=SeparationTrainer,
)
