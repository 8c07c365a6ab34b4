"""One evaluation from start to end: for ``blsgan evaluate``, comparisons and ablations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from blsgan.data.layout import JointImage, content_digest
from blsgan.data.truths import cached_visit_truths
from blsgan.data.visits import PROTOCOL, TRAINING, VisitTruth
from blsgan.evaluation.frechet import Extractor
from blsgan.evaluation.layers import Predict, evaluate_layers
from blsgan.evaluation.methods import Method, hidden_baselines
from blsgan.evaluation.protocol import (
    NothingToMeasureError,
    Supervise,
    describe_images,
    evaluate_real,
    evaluate_synthetic,
)
from blsgan.evaluation.results import Evaluation
from blsgan.progress import Track, silent

PARTS = ("layers", "real", "synthetic")
COMPARED = PARTS[1:]  # by which the rows of an ablation are compared


def run_evaluation(
    images: Sequence[JointImage],
    model: Method | None,
    *,
    split: str,
    parts: Sequence[str] = COMPARED,
    seed: int = 0,
    cache: Path | None = None,
    extractors: Sequence[Extractor] = (),
    predict: Predict | None = None,
    supervise: Supervise | None = None,
    baselines: bool = True,
    progress: Track = silent,
    left_out: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Measures a model, or the closed forms alone, on the images of a split.

    Args:
        images: the split's entries.
        model: what to judge, or None.
        split: the split's name, for the record.
        parts: of :data:`PARTS`.
        seed: of the synthetic shifts and of the bootstrap.
        cache: folder where registered visits are kept.
        extractors: features of the Fréchet distances.
        predict: a segmenter, to judge layers with predicted masks, too.
        supervise: a supervisor's opinion of layers.
        baselines: also measure the closed forms; without them there must be a model.
        progress: wraps loops over images: (items, label, total).
        left_out: called with a sentence where one of several parts has nothing to measure.

    Raises:
        InputError: a listed file is missing or damaged.
        NothingToMeasureError: there is nothing to measure for any part.
        OutputError: registered visits cannot be kept in ``cache``.
    """
    dataset = {**describe_images(images), "sha256": content_digest(images)}
    evaluation = Evaluation(split, seed, dataset, model.description if model else {})
    # A split may lack what one part measures; the other part is worth having all the same.
    empty: list[NothingToMeasureError] = []
    truths: list[VisitTruth] = []
    if "layers" in parts or "real" in parts:
        thresholds = TRAINING if "layers" in parts else PROTOCOL
        truths = cached_visit_truths(images, cache, thresholds, progress)
    if "layers" in parts:
        methods = [*(hidden_baselines() if baselines else []), *([model] if model else [])]
        try:
            evaluation.layers = evaluate_layers(
                images,
                truths,
                methods,
                with_other_masks=[model] if model else [],
                predict=predict,
                seed=seed,
                progress=progress,
            )
        except NothingToMeasureError as error:
            empty.append(error)
    if "synthetic" in parts:
        try:
            evaluation.synthetic = evaluate_synthetic(
                images,
                model,
                seed=seed,
                progress=progress,
                extractors=extractors,
                baselines=baselines,
            )
        except NothingToMeasureError as error:
            empty.append(error)
    if "real" in parts:
        try:
            evaluation.real = evaluate_real(
                images,
                [truth for truth in truths if truth.meets(PROTOCOL)],
                model,
                seed=seed,
                progress=progress,
                extractors=extractors,
                supervise=supervise,
                baselines=baselines,
            )
        except NothingToMeasureError as error:
            empty.append(error)
    if len(empty) == len(parts):
        raise empty[0]
    for reason in empty:
        left_out(str(reason))
    return evaluation
