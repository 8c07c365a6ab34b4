"""A dataset in the public layout whose radiographs are phantoms."""

import json

import numpy as np
import pytest
from PIL import Image

from blsgan.data.layout import load_root
from blsgan.data.splits import is_validation
from blsgan.synthesis.phantoms import joint_phantom

SIDE = 256


def _validation_names(count):
    return [n for n in (f"{i:05d}_L_2" for i in range(500)) if is_validation(n)][:count]


def _training_name():
    return next(n for n in (f"{i:05d}_L_2" for i in range(500)) if not is_validation(n))


def _save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 97} if path.suffix == ".jpg" else {}
    Image.fromarray(np.round(array * 255).astype(np.uint8)).save(path, **options)


def write_joint(root, joint, visit, phantom):
    """Writes one radiograph with masks and background; returns its entry in a list file."""
    folder = "Dataset_cases_anonymization"
    entry = {
        "image": f"{folder}/{joint}/{visit}.jpg",
        "upper": f"{folder}/{joint}/{visit}_mask_upper.bmp",
        "lower": f"{folder}/{joint}/{visit}_mask_lower.bmp",
        "background": f"{folder}/background/{joint}_{visit}.jpg",
    }
    pictures = (phantom.image, phantom.masks[0], phantom.masks[1], phantom.background)
    for path, picture in zip(entry.values(), pictures, strict=True):
        _save(picture, root / path)
    return entry


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Three validation joints and one training joint, each seen with and without overlap."""
    root = tmp_path_factory.mktemp("joints") / "Data"
    entries = []
    for seed, joint in enumerate([*_validation_names(3), _training_name()]):
        for visit, gap in (("a", -14.0), ("b", 3.0)):
            phantom = joint_phantom(seed, SIDE, gap_px=gap)
            entries.append(write_joint(root, joint, visit, phantom))
    (root / "LS_K1_all_train").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="session")
def images(dataset):
    return [image for image in load_root(dataset) if is_validation(image.joint)]
