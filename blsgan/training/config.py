"""What a training run is: one YAML file, checked key by key before anything starts.

The shipped presets lie in ``blsgan/training/presets``; copy one, edit it, and give its path to
``blsgan train --preset``. Unknown keys are errors: a misspelt one must not train something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from blsgan.data.splits import VALIDATION, fold_of
from blsgan.errors import UsageError
from blsgan.ops import K_MAX
from blsgan.training.plain_yaml import read_plain, shown

PRESETS = Path(__file__).resolve().parent / "presets"

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
SoftTissue = Annotated[float, Field(ge=0, le=K_MAX)]
Steps = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]

LARGE_CROP_EVERY = 4  # steps


class _Strict(BaseModel):
    """``removed``: keys of older versions, with the value at which they did nothing. Every old run
    wrote them all down; with another value it can only be finished by the version that began it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    removed: ClassVar[Mapping[str, Any]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if (
            isinstance(value, bool)
            and cls.model_fields[info.field_name or ""].annotation is not bool
        ):
            raise ValueError("input should be another value than true or false")
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            key: value
            for key, value in fields.items()
            if key not in cls.removed or value != cls.removed[key]
        }


class ModelConfig(_Strict):
    """The generator: a name of the registry and the arguments that differ from its defaults."""

    architecture: str = "lite"
    configuration: dict[str, Any] = Field(default_factory=dict)


class SupervisorConfig(_Strict):
    """The second player. It takes part in the stages whose ``loss.supervisor`` is not 0."""

    enabled: bool = Field(default=True, description="false: it takes part in none")
    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=2, max_length=6)
    ] = Field(default=(16, 32, 64, 128, 256), description="channels of its U-Net")


class DataConfig(_Strict):
    """What a step sees."""

    removed = {"protocol_partner_share": 0}

    pairs: Literal["crops", "images"] = Field(
        default="crops", description="crops of the overlap, or whole images as published"
    )
    synthetic: Annotated[int, Field(ge=1)] = Field(
        default=16, description="synthetic pairs in a step"
    )
    protocol_share: Share = Field(
        default=0.5, description="of the synthetic pairs: the evaluation protocol's settings"
    )
    composites: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="overlaps composed of real bones with their blurred edges in a step",
    )
    visits: Annotated[int, Field(ge=0)] = Field(
        default=8, description="real overlaps with another visit's truth in a step; 0: none"
    )
    real: Annotated[int, Field(ge=0)] = Field(
        default=0, description="real overlaps without a truth in a step, for the supervisor"
    )
    redrawn_share: Share = Field(
        default=0.5,
        description="of the real overlaps: their masks are moved, grown, shrunk and smoothed, as "
        "another reader or a network would draw them",
    )
    validation: Annotated[int, Field(ge=1)] = Field(
        default=192, description="synthetic pairs of validation joints in a validation"
    )
    soft_tissue_share: Share = Field(
        default=0.35,
        description="of the other synthetic crops: k from soft_tissue_range, not the background's",
    )
    soft_tissue_range: tuple[SoftTissue, SoftTissue] = Field(
        default=(0.1, 0.65), description="least and largest k, drawn evenly"
    )
    tone_curves: bool = Field(default=True, description="crops are given random tone curves")
    rim_taper: Share = Field(
        default=0.0,
        description="of the other synthetic crops' attenuation: most that a bone loses at its rim "
        "where it lies over the other bone; 0: nothing",
    )
    crop: tuple[int, int] = Field(
        default=(64, 128), description="rows and columns of a crop, in px"
    )
    large_crop: tuple[int, int] | None = Field(
        default=None, description="that of every fourth step; none: every step has crop"
    )
    size: Annotated[int, Field(ge=64, le=4096, multiple_of=32)] = Field(
        default=256, description="side of a whole image, in px"
    )

    def in_step(self, step: int) -> DataConfig:
        """What holds in that step of the run, counted from 0: ``crop`` is its crops' size."""
        if self.large_crop is None or step % LARGE_CROP_EVERY != LARGE_CROP_EVERY - 1:
            return self
        return self.model_copy(update={"crop": self.large_crop})

    @model_validator(mode="after")
    def _range_rises(self) -> DataConfig:
        low, high = self.soft_tissue_range
        if low > high:
            raise ValueError(f"soft_tissue_range is {low} to {high}; the first must not be larger")
        return self


class OptimiserConfig(_Strict):
    """Linear warm-up and cosine decay; the gradient's norm is clipped."""

    method: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the convolutions inside, AdamW for the rest"
    )
    learning_rate: Positive = Field(default=1.5e-3, description="of AdamW, the highest")
    muon_learning_rate: Positive = Field(default=3e-3, description="of Muon, the highest")
    reconstructor_learning_rate: Positive | None = Field(
        default=None, description="of the VGG-11 that reads k; none: learning_rate"
    )
    supervisor_learning_rate: Positive = Field(default=1e-4, description="constant, Adam")
    final_share: Share = Field(
        default=0.02, description="learning rate at the end / at its highest"
    )
    warm_up_steps: Steps = 150
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    clip_norm: Positive | None = Field(default=0.5, description="none: not clipped")
    ema_decay: Share = Field(
        default=0.999, description="of the averaged weights, the ones that ship; 0: no average"
    )


class LossConfig(_Strict):
    """Weights of the terms in ``objective.py``."""

    removed = {"ssim": 0}

    decibel: Annotated[float, Field(ge=0)] = Field(
        default=0.1, description="logarithm of each image's error, where the truth is known"
    )
    visits: Annotated[float, Field(ge=0)] = Field(
        default=0.4, description="in it, of real overlaps beside synthetic ones"
    )
    soft_tissue: Annotated[float, Field(ge=0)] = 0.3
    mse_floor: Positive = Field(
        default=2e-5, description="mean squared error below which nothing is won"
    )
    visits_mse_floor: Positive | None = Field(
        default=None, description="of real overlaps, whose truth is noisy; none: mse_floor"
    )
    layer: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="RMSE of layers of synthetic pairs"
    )
    reconstruction: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="RMSE of the composed layers against the image"
    )
    supervisor: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="what the supervisor says of the layers"
    )


class StageConfig(_Strict):
    """A part of the run; of data, optimiser and loss a preset gives what differs from the run's."""

    name: Name
    steps: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="optimiser steps; 0 leaves the stage out"
    )
    epochs: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="instead of steps: times that every image is drawn"
    )
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loss: LossConfig = LossConfig()

    @model_validator(mode="after")
    def _one_length(self) -> StageConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a stage has either steps or epochs")
        return self


class RunConfig(_Strict):
    """What every run has. ``precision`` is of the networks' arithmetic; losses are float32."""

    task: str
    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Steps | None
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    validate_every: Steps = 250
    checkpoint_every: Steps = 250
    keep_checkpoints: Steps = 3

    def dump(self) -> str:
        """The resolved configuration as YAML; :func:`load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def check(self) -> None:
        """Raises :class:`UsageError` for keys that do not go together."""


class TrainingConfig(RunConfig):
    """A whole run of a separator."""

    task: Literal["separation"] = "separation"
    name: Name = "lite"
    steps: Steps | None = Field(default=9000, description="of a run without stages")
    compile: bool = Field(default=False, description="torch.compile the networks")
    deterministic: bool = Field(
        default=False, description="refuse kernels whose result varies; the CPU's never does"
    )
    draws: Literal["sequence", "step"] = Field(
        default="sequence",
        description="sequence: one stream of random numbers through the run; step: what a source "
        "gives in a step depends on seed, source and step alone, so that runs which leave another "
        "source out see the same of it (crops only)",
    )
    held_out: str = Field(
        default=VALIDATION,
        description="joints that no step sees and that validations are of: val, or K/N, the K-th "
        "of N folds, for cross-validation",
    )
    model: ModelConfig = ModelConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loss: LossConfig = LossConfig()
    stages: tuple[StageConfig, ...] = Field(
        default=(), description="one after the other; none: a single one of ``steps``"
    )

    @model_validator(mode="before")
    @classmethod
    def _stages_inherit(cls, fields: Any) -> Any:
        """Completes each stage by the run's data, optimiser and loss."""
        if not isinstance(fields, dict) or not isinstance(fields.get("stages"), list | tuple):
            return fields
        stages = [_inherit(stage, fields) for stage in fields["stages"]]
        if stages and fields.get("steps") is not None:
            raise ValueError("a run with stages has no key 'steps': set stages.0.steps and so on")
        return {**fields, "stages": stages, **({"steps": None} if stages else {})}

    @field_validator("held_out")
    @classmethod
    def _a_split(cls, held_out: str) -> str:
        if held_out != VALIDATION:
            try:
                fold_of(held_out)
            except UsageError as error:
                raise ValueError("must be val, or K/N for the K-th of N folds, as 1/4") from error
        return held_out

    @model_validator(mode="after")
    def _has_a_length(self) -> TrainingConfig:
        if self.steps is None and not self.stages:
            raise ValueError("a run has either steps or stages")
        return self

    def has_supervisor(self) -> bool:
        """Whether any stage is supervised."""
        losses = [s.loss for s in self.stages if s.steps or s.epochs] or [self.loss]
        return self.supervisor.enabled and any(loss.supervisor > 0 for loss in losses)

    def check(self) -> None:
        parts = [(f"stages.{i}.data", stage.data) for i, stage in enumerate(self.stages)]
        for key, data in parts or [("data", self.data)]:
            for name in ("crop", "large_crop"):
                rows, columns = getattr(data, name) or data.crop
                if (
                    min(rows, columns) < 16
                    or max(rows, columns) > 4096
                    or rows % 16
                    or columns % 16
                ):
                    raise UsageError(
                        f"key '{key}.{name}' is {rows}x{columns}; rows and "
                        "columns must be multiples of 16, up to 4096"
                    )
            if data.pairs == "images" and data.large_crop is not None:
                raise UsageError(
                    f"key '{key}.large_crop' is {list(data.large_crop)}; whole "
                    "images have no crops, so it must be null"
                )
            if data.pairs == "images" and data.visits:
                raise UsageError(
                    f"key '{key}.visits' is {data.visits}; whole images have no "
                    "truth of other visits, so it must be 0"
                )
            if data.pairs == "images" and self.draws == "step":
                raise UsageError(
                    "key 'draws' is step; whole images are dealt one after the "
                    "other, so it must be sequence"
                )
        if len({data.pairs for _, data in parts}) > 1:
            raise UsageError(
                "key 'stages' mixes data.pairs crops and images; a run has one of them"
            )
        for name in ("size", "validation"):
            if len({getattr(data, name) for _, data in parts}) > 1:
                raise UsageError(f"key 'data.{name}' differs between stages; a run has one")


class SegmenterModelConfig(_Strict):
    """The network: channels and residual blocks at 1/2, 1/4, ... of 256x256."""

    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=2, max_length=7)
    ] = (16, 32, 48, 64, 96, 96)
    blocks: Annotated[
        tuple[Annotated[int, Field(ge=0, le=8)], ...], Field(min_length=2, max_length=7)
    ] = (1, 1, 1, 1, 1, 2)

    @model_validator(mode="after")
    def _one_block_count_for_each_width(self) -> SegmenterModelConfig:
        if len(self.widths) != len(self.blocks):
            raise ValueError("widths and blocks must be of one length")
        return self


class SceneConfig(_Strict):
    """What a step of the segmenter sees."""

    removed = {"composite_share": 0}

    batch: Annotated[int, Field(ge=1)] = Field(default=8, description="pictures in a step")
    phantom_share: Share = Field(default=0.08, description="of them: phantoms")
    negative_share: Share = Field(default=0.2, description="of them: pictures without a joint")
    overlap_share: Share = Field(
        default=0.0,
        description="of the real joints: drawn from those whose bones overlap by 150 px and more",
    )
    validation: Annotated[int, Field(ge=1)] = Field(
        default=96, description="validation joints in a validation, and a quarter as many negatives"
    )


class SegmentationLossConfig(_Strict):
    """Weights of the terms in ``segmentation_loss``."""

    border: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="extra weight within 3 px of a border"
    )
    overlap: Annotated[float, Field(ge=0)] = Field(
        default=4.0, description="extra weight where both bones are"
    )
    dice: Annotated[float, Field(ge=0)] = Field(default=1.0, description="Dice of each bone")
    overlap_dice: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="Dice of the overlap"
    )


class SegmentationOptimiserConfig(_Strict):
    """AdamW with a linear warm-up and a cosine decay; the gradient's norm is clipped."""

    learning_rate: Positive = 2e-3
    final_share: Share = Field(
        default=0.01, description="learning rate at the end / at its highest"
    )
    warm_up_steps: Steps = 150
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    clip_norm: Positive = 1.0
    ema_decay: Share = Field(
        default=0.998, description="of the averaged weights, the ones that ship"
    )


class SegmentationConfig(RunConfig):
    """A whole run of a mask segmenter; the defaults are those of the shipped weights."""

    task: Literal["segmentation"] = "segmentation"
    name: Name = "segmenter"
    steps: Steps = 4000
    model: SegmenterModelConfig = SegmenterModelConfig()
    data: SceneConfig = SceneConfig()
    optimiser: SegmentationOptimiserConfig = SegmentationOptimiserConfig()
    loss: SegmentationLossConfig = SegmentationLossConfig()


class LocatorModelConfig(SegmenterModelConfig):
    """The network: channels and residual blocks at 1/2, 1/4, ... of 192x192."""

    widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=256)], ...], Field(min_length=2, max_length=6)
    ] = (24, 48, 72, 96, 128, 128)
    blocks: Annotated[
        tuple[Annotated[int, Field(ge=0, le=8)], ...], Field(min_length=2, max_length=6)
    ] = (1, 1, 1, 1, 1, 1)


class LocatorOptimiserConfig(SegmentationOptimiserConfig):
    """As for the segmenter, with a shorter warm-up."""

    warm_up_steps: Steps = 100


class ViewConfig(_Strict):
    """What a step of the locator sees."""

    batch: Annotated[int, Field(ge=1)] = Field(default=12, description="pictures in a step")
    phantom_share: Share = Field(default=0.06, description="of them: phantoms")
    negative_share: Share = Field(default=0.15, description="of them: pictures without a hand")


class LocationConfig(RunConfig):
    """A whole run of a joint locator."""

    task: Literal["location"] = "location"
    name: Name = "locator"
    steps: Steps = 3000
    model: LocatorModelConfig = LocatorModelConfig()
    data: ViewConfig = ViewConfig()
    optimiser: LocatorOptimiserConfig = LocatorOptimiserConfig()


GridConfig = SegmentationConfig | LocationConfig
"""Of a network that answers on one grid."""

TASKS: dict[str, type[RunConfig]] = {
    "separation": TrainingConfig,
    "segmentation": SegmentationConfig,
    "location": LocationConfig,
}


@dataclass(frozen=True)
class Stage:
    """A stage with its place in the run: it makes the steps ``first`` (from 0) to ``last - 1``."""

    name: str
    first: int
    last: int
    data: DataConfig
    optimiser: OptimiserConfig
    loss: LossConfig

    @property
    def steps(self) -> int:
        return self.last - self.first


def stages_of(config: TrainingConfig, epoch: Callable[[DataConfig], int]) -> list[Stage]:
    """The run's stages in order, without those of no steps.

    Args:
        config: the run's configuration.
        epoch: the steps in which every image is drawn once, asked only for stages of epochs.

    Raises:
        UsageError: no stage has a step.
    """
    if not config.stages:
        assert config.steps is not None
        parts = config.data, config.optimiser, config.loss
        return [Stage(config.name, 0, config.steps, *parts)]
    stages: list[Stage] = []
    for given in config.stages:
        first = stages[-1].last if stages else 0
        steps = given.steps if given.steps is not None else (given.epochs or 0) * epoch(given.data)
        if steps:
            parts = given.data, given.optimiser, given.loss
            stages.append(Stage(given.name, first, first + steps, *parts))
    if not stages:
        raise UsageError("every stage has 0 steps; set stages.0.steps or stages.0.epochs")
    return stages


def _inherit(stage: Any, fields: Mapping[str, Any]) -> Any:
    if not isinstance(stage, dict):
        return stage
    whole = dict(stage)
    for part in ("data", "optimiser", "loss"):
        common, own = fields.get(part, {}), stage.get(part, {})
        if isinstance(common, dict) and isinstance(own, dict):
            whole[part] = {**common, **own}
    return whole


def preset_names() -> list[str]:
    """The shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str | Path, changes: Sequence[str] = ()) -> RunConfig:
    """A preset with changes, checked.

    Args:
        preset: a shipped preset's name, or the path of a YAML file.
        changes: ``key=value`` with dots for nested keys (``optimiser.learning_rate=1e-3``); values
            are YAML.

    Raises:
        UsageError: no such preset, not YAML, an unknown key or a value out of range; the message
            names the key.
    """
    path = Path(preset)
    if not path.suffix and str(preset) in preset_names():
        path = PRESETS / f"{preset}.yaml"
    try:
        fields = read_plain(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"preset '{preset}' is neither one of {', '.join(preset_names())} nor a "
            f"readable YAML file ({error.strerror})"
        ) from error
    except ValueError as error:  # also of bytes that are no UTF-8, or of a path
        raise UsageError(f"{path}: is not a YAML file of a preset ({error})") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: is not a preset (keys and values)")
    for change in changes:
        _apply_change(fields, change)
    kind = _kind_of(fields, path)
    try:
        config = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ""
        if first["type"] == "extra_forbidden":
            names = _known_keys(kind, first["loc"][:-1])
            known = f"; known keys there: {', '.join(names)}" if names else ""
        where = f"key '{key}': " if key else ""
        what = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f" (got {shown(first['input'])})"
        raise UsageError(f"{path}: {where}{what[0].lower()}{what[1:]}{got}{known}") from error
    for change in changes:
        _check_effective(fields, change)
    try:
        config.check()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return config


def _kind_of(fields: Mapping[str, Any], path: Path) -> type[RunConfig]:
    model = fields.get("model")
    # Runs of segmenters that were begun before configurations named their task.
    older = isinstance(model, dict) and "widths" in model
    task = fields.get("task", "segmentation" if older else "separation")
    if not isinstance(task, str) or task not in TASKS:
        raise UsageError(f"{path}: key 'task' is {task!r}; choose one of {', '.join(TASKS)}")
    return TASKS[task]


def _check_effective(fields: Mapping[str, Any], change: str) -> None:
    """Refuses a change of the run's own key that a stage overrules."""
    part, _, name = change.partition("=")[0].strip().partition(".")
    stages = fields.get("stages")
    if part not in ("data", "optimiser", "loss") or not name or not isinstance(stages, list):
        return
    overruling = [
        f"stages.{index}.{part}.{name}"
        for index, stage in enumerate(stages)
        if isinstance(stage, dict) and name in (stage.get(part) or {}) and stage.get("steps") != 0
    ]
    if overruling:
        raise UsageError(
            f"key '{part}.{name}' does not reach every stage, some set it themselves; "
            f"change {', '.join(overruling)}"
        )


def _apply_change(fields: dict[str, Any], change: str) -> None:
    """Puts one ``key=value`` into ``fields``; raises :class:`UsageError` where it cannot."""
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"'{change}' is not key=value, as in optimiser.learning_rate=1e-3")
    try:
        value = read_plain(text)
    except ValueError as error:
        raise UsageError(
            f"the value of '{change[:80]}' is not YAML that can be used ({error})"
        ) from error
    if isinstance(value, str):
        value = _number(value)
    *parents, last = key.strip().split(".")
    place: Any = fields
    for parent in parents:
        place = _below(place, parent, key)
    if isinstance(place, list):
        raise UsageError(
            f"key '{key}' does not exist: {len(place)} stages are not replaced as a "
            f"whole; name a key of one, as in {parents[-1]}.{last}.steps"
        )
    place[last] = value
    if parents[:1] == ["stages"] and last in ("steps", "epochs"):
        place.pop("epochs" if last == "steps" else "steps", None)  # a stage has one of them


def _below(place: Any, name: str, key: str) -> dict[str, Any] | list[Any]:
    """What lies under ``name``: keys, made where there are none, or a list such as the stages."""
    inner: Any
    if isinstance(place, list):
        if not (name.isascii() and name.isdigit()) or int(name[:9]) >= len(place):
            raise UsageError(
                f"key '{key}' does not exist: '{name}' is not one of 0 to {len(place) - 1}"
            )
        inner = place[int(name)]
    else:
        inner = place.setdefault(name, {})
    if not isinstance(inner, dict | list):
        raise UsageError(f"key '{key}' does not exist: '{name}' has no keys below it")
    return inner


def _number(text: str) -> str | float:
    # YAML 1.1 takes 1e-3 for a string; everybody who types it means a number.
    try:
        return float(text)
    except ValueError:
        return text


def _known_keys(kind: type[RunConfig], location: Sequence[str | int]) -> list[str]:
    model: Any = kind
    for part in location:
        model = StageConfig if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)


def differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two dumped configurations differ."""
    keys: list[str] = []
    for key in first:
        a, b = first[key], second.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(prefix + key)
    return keys
