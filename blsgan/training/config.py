"""What a training run is: one YAML file, checked key by key before anything starts.

The shipped presets lie in ``blsgan/training/presets``; copy one, edit it, and give its path to
``blsgan train --preset``. Unknown keys are errors: a misspelt one must not train something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blsgan.errors import UsageError

PRESETS = Path(__file__).resolve().parent / "presets"

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Strict):
    """The generator: a name of the registry and the arguments that differ from its defaults."""

    architecture: str = "lite"
    configuration: dict[str, Any] = Field(default_factory=dict)


class DataConfig(_Strict):
    """What a step sees."""

    synthetic: Annotated[int, Field(ge=1)] = Field(
        default=16, description="synthetic pairs in a step"
    )
    protocol_share: Share = Field(
        default=0.5, description="of the synthetic pairs: the evaluation protocol's settings"
    )
    visits: Annotated[int, Field(ge=0)] = Field(
        default=8, description="real overlaps in a step; 0: none"
    )
    validation: Annotated[int, Field(ge=1)] = Field(
        default=192, description="synthetic pairs of validation joints in a validation"
    )
    crop: tuple[int, int] = Field(
        default=(64, 128), description="rows and columns of a crop, in px"
    )


class OptimiserConfig(_Strict):
    """AdamW with a linear warm-up and a cosine decay; the gradient's norm is clipped."""

    learning_rate: Positive = 1.5e-3
    final_share: Share = Field(
        default=0.02, description="learning rate at the end / at its highest"
    )
    warm_up_steps: Steps = 150
    betas: tuple[Share, Share] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    clip_norm: Positive = 0.5
    ema_decay: Share = Field(
        default=0.999, description="of the averaged weights, the ones that ship"
    )


class LossConfig(_Strict):
    """Weights of the terms in ``objective.py``."""

    visits: Annotated[float, Field(ge=0)] = 0.4
    soft_tissue: Annotated[float, Field(ge=0)] = 0.3
    mse_floor: Positive = Field(
        default=2e-5, description="mean squared error below which nothing is won"
    )


class TrainingConfig(_Strict):
    """A whole run. ``precision`` is of the network's arithmetic; losses are always float32."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "lite"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Steps = 9000
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    validate_every: Steps = 250
    checkpoint_every: Steps = 250
    keep_checkpoints: Steps = 3
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loss: LossConfig = LossConfig()

    def dump(self) -> str:
        """The resolved configuration as YAML; :func:`load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def preset_names() -> list[str]:
    """The shipped presets."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(preset: str | Path, changes: Sequence[str] = ()) -> TrainingConfig:
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
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"preset '{preset}' is neither one of {', '.join(preset_names())} nor a "
                         f"readable YAML file ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: is not a YAML file ({reason})") from error
    if fields is None:
        fields = {}
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: is not a preset (keys and values)")
    for change in changes:
        _apply(fields, change)
    try:
        config = TrainingConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ""
        if first["type"] == "extra_forbidden":
            names = _known_keys(first["loc"][:-1])
            known = f"; known keys there: {', '.join(names)}" if names else ""
        raise UsageError(f"{path}: key '{key}': {first['msg'].lower()} (got "
                         f"{first['input']!r}){known}") from error
    rows, columns = config.data.crop
    if min(rows, columns) < 16 or rows % 16 or columns % 16:
        raise UsageError(f"{path}: key 'data.crop' is {rows}x{columns}; rows and columns must be "
                         "multiples of 16")
    return config


def _apply(fields: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"'{change}' is not key=value, as in optimiser.learning_rate=1e-3")
    try:
        value = yaml.safe_load(text)
        if isinstance(value, str):
            value = _number(value)
    except yaml.YAMLError as error:
        raise UsageError(f"the value of '{change}' is not YAML") from error
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = fields.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise UsageError(f"key '{key}' does not exist: '{parent}' has no keys below it")
        fields = inner
    fields[last] = value


def _number(text: str) -> str | float:
    # YAML 1.1 takes 1e-3 for a string; everybody who types it means a number.
    try:
        return float(text)
    except ValueError:
        return text


def _known_keys(location: Sequence[str | int]) -> list[str]:
    model: Any = TrainingConfig
    for part in location:
        model = model.model_fields[part].annotation
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
