"""A dataset, whichever way it is stored: a folder in the public layout, or one packed file."""

from __future__ import annotations

from pathlib import Path

from blsgan.data.layout import JointImage, list_files, load_list
from blsgan.data.packed import PackedDataset
from blsgan.errors import InputError


def load_root(root: str | Path) -> list[JointImage]:
    """Every image of a dataset, once, sorted by name.

    Args:
        root: the folder that holds the list files, or a file that ``blsgan data pack`` wrote of it.

    Raises:
        InputError: ``root`` is neither, or a list cannot be read.
    """
    root = Path(root)
    if root.is_file() and root.name.startswith(("LS_", "DR_")):
        raise InputError(
            f"{root}: is a list file of the dataset; give the folder that holds it, {root.parent}"
        )
    if root.is_file():
        return PackedDataset(root).images()
    lists = list_files(root)
    found = {image.name: image for path in lists for image in load_list(path)}
    return [found[name] for name in sorted(found)]
