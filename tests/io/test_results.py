"""What is written can be read back, and only a complete, unaltered result counts as finished."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from blsgan.errors import OutputError
from blsgan.io import results
from blsgan.io.panel import draw_panel, signed_colours
from blsgan.io.spacing import PixelSpacing
from blsgan.records.record import ImageFacts, InputFile, Weights
from blsgan.records.separation import (
    Overlap,
    ReconstructionError,
    SeparationOptions,
    SeparationRecord,
)

RNG = np.random.default_rng(0)
PLANES = {
    "upper": RNG.random((20, 30), np.float32),
    "lower": RNG.random((20, 30), np.float32),
    "reconstruction": RNG.random((20, 30), np.float32),
    "residual": (RNG.random((20, 30), np.float32) - 0.5) * 2,
}
MADE_FROM = {"inputs": {"image": InputFile(sha256="1")}, "weights": Weights(sha256="2")}
RECORD = SeparationRecord(
    schema=1,
    **MADE_FROM,
    options=SeparationOptions(),
    image=ImageFacts(height_px=20, width_px=30),
    overlap=Overlap(area_px=0),
    reconstruction_error=ReconstructionError(mse=0.0),
    notes=[],
)


def finished(folder, file_format, name="j", **changes):
    files = [folder / file for file in results.result_names(name, file_format)]
    return results.finished(SeparationRecord, files, {**MADE_FROM, **changes}) is not None


def write(folder, file_format="png", **options):
    return results.write_result(
        folder, "j", PLANES, Image.new("RGB", (8, 8)), RECORD, file_format=file_format, **options
    )


@pytest.mark.parametrize("file_format", ["png", "tiff"])
def test_16_bit_pictures(tmp_path, file_format):
    write(tmp_path, file_format, pixel_spacing=PixelSpacing(0.2, 0.1, "user"))
    for plane in ("upper", "lower", "reconstruction"):
        with Image.open(tmp_path / f"j_{plane}.{file_format}") as picture:
            values = np.asarray(picture)
            assert picture.info["dpi"][0] == pytest.approx(254, rel=1e-3)
            assert picture.info["dpi"][1] == pytest.approx(127, rel=1e-3)
        assert values.dtype == np.uint16
        np.testing.assert_array_equal(values, np.rint(PLANES[plane] * np.float32(65535)))
    residual = np.asarray(Image.open(tmp_path / f"j_residual.{file_format}")).astype(float)
    np.testing.assert_allclose((residual - 32768) / 32767, PLANES["residual"], atol=1.6e-5)


def test_levels_of_8_bit_input_survive_exactly():
    levels = (np.arange(256) / 255).astype(np.float32)
    np.testing.assert_array_equal(results.to_uint16(levels), np.arange(256) * 257)


def test_an_npz_of_blocks_has_the_bytes_that_numpy_gives_it(tmp_path):
    random = np.random.default_rng(0)
    zone = random.random((300, 4000)) > 0.7  # two blocks of rows
    values = random.random(np.count_nonzero(zone), np.float32)
    plane = np.full(zone.shape, np.nan, np.float32)
    plane[zone] = values
    write(tmp_path, "npz", arrays={"zone": zone, "soft_tissue": results.Scattered(zone, values)})
    with np.load(tmp_path / "j.npz") as arrays:
        whole = dict(arrays)
    np.testing.assert_array_equal(whole["soft_tissue"], plane)
    np.savez_compressed(tmp_path / "numpy.npz", **whole)
    assert (tmp_path / "j.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_npz(tmp_path):
    write(tmp_path, "npz", arrays={"soft_tissue": np.float32(0.4)})
    with np.load(tmp_path / "j.npz") as arrays:
        for plane, values in PLANES.items():
            np.testing.assert_array_equal(arrays[plane], values)
        assert arrays["soft_tissue"] == np.float32(0.4)


@pytest.mark.parametrize("file_format", results.FORMATS)
def test_same_input_same_bytes(tmp_path, file_format):
    for name in ("one", "two"):
        write(tmp_path / name, file_format)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("file_format", results.FORMATS)
def test_finished_is_judged_by_content(tmp_path, file_format):
    files = write(tmp_path, file_format)

    assert finished(tmp_path, file_format)
    assert not finished(tmp_path, file_format, inputs={"image": InputFile(sha256="other")})
    assert not finished(tmp_path, file_format, weights=Weights(sha256="other"))
    assert not finished(tmp_path, file_format, name="k")
    for path in files[:-1]:
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        assert not finished(tmp_path, file_format)
        path.unlink()
        assert not finished(tmp_path, file_format)
        path.write_bytes(content)
        assert finished(tmp_path, file_format)
    for text in ("", "[]", "{", json.dumps({**RECORD.fields(), "outputs": None})):
        files[-1].write_text(text)
        assert not finished(tmp_path, file_format)


def test_only_what_the_old_record_names_is_removed(tmp_path):
    write(tmp_path, "png")
    (tmp_path / "j_upper.png").write_bytes(b"painted over by the user")
    (tmp_path / "j_lower.tiff").write_bytes(b"of another program")
    record = json.loads((tmp_path / "j.json").read_text())
    record["outputs"] |= {"../elsewhere.png": "1", "j_lower.tiff": "1", "j_residual.tiff": ""}
    (tmp_path / "j.json").write_text(json.dumps(record))
    write(tmp_path, "npz")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"j.npz", "j_panel.png", "j.json", "j_upper.png", "j_lower.tiff"}


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": 1, "outputs": 3}', "null"])
def test_a_record_that_is_none_is_written_over(tmp_path, text):
    (tmp_path / "j.json").write_text(text)
    assert not finished(tmp_path, "png")
    write(tmp_path)
    assert finished(tmp_path, "png")


def test_an_encoder_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise OSError("encoder error -2 when writing image file")  # as Pillow words a full disk

    monkeypatch.setattr(results, "_write_picture", fails)
    with pytest.raises(OutputError, match=r"j_upper\.png cannot be written: encoder error"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class TestPanel:
    MASKS = np.zeros((2, 120, 90), bool)
    MASKS[0, 5:64, 20:70] = True
    MASKS[1, 56:115, 20:70] = True
    IMAGE = np.linspace(0.1, 0.9, 120 * 90, dtype=np.float32).reshape(120, 90)

    def draw(self, masks=MASKS, residual=None, **options):
        residual = np.zeros_like(self.IMAGE) if residual is None else residual
        layers = self.IMAGE * masks
        union = self.IMAGE * masks.any(axis=0)
        return np.asarray(draw_panel(self.IMAGE, masks, *layers, union, residual, **options))

    def test_overlap_gets_a_row_of_its_own(self):
        apart = self.MASKS.copy()
        apart[0, 56:] = False
        assert self.draw().shape[0] > self.draw(apart).shape[0] > 300

    def test_residual_is_seen(self):
        residual = np.zeros_like(self.IMAGE)
        residual[60, 40:50] = 0.01
        changed = (self.draw() != self.draw(residual=residual)).any(axis=-1)
        assert changed.any()
        assert not changed[:, : changed.shape[1] * 3 // 4].any()  # the other four columns agree

    def test_scale_bar_only_with_a_spacing(self):
        assert (self.draw() != self.draw(pixel_mm=0.1)).any()

    @pytest.mark.parametrize("shape", [(2, 3), (3, 200), (200, 3), (1, 2)])
    def test_any_shape(self, shape):
        masks = np.zeros((2, *shape), bool)
        masks[0].flat[0] = masks[:, -1, -1] = True
        image = np.full(shape, 0.5, np.float32)
        draw_panel(image, masks, *(image * masks), image, np.zeros_like(image))

    def test_signed_colours(self):
        blue, white, red = signed_colours(np.array([-1.0, 0.0, 1.0])).astype(int)
        assert blue[2] > 2 * blue[0]
        assert white.min() > 240, "what is zero looks like nothing"
        assert red[0] > 2 * red[2]
        beyond = signed_colours(np.array([-3.0, 9.0]))
        np.testing.assert_array_equal(beyond, np.stack([blue, red]))
