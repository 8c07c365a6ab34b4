"""The C++ runner beside `blsgan separate`: the same pixels, the same sentences, no crash."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blsgan.cli import main
from blsgan.synthesis.phantoms import joint_phantom

ROOT = Path(__file__).resolve().parents[2]
PLANES = ("upper", "lower", "reconstruction", "residual")


@pytest.fixture(scope="session")
def runner() -> Path:
    """blsgan-infer of this tree ($BLSGAN_INFER: another build), compiled where that is needed."""
    if named := os.environ.get("BLSGAN_INFER"):
        return Path(named)
    for tool in ("cmake", "ninja", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH, so blsgan-infer cannot be compiled")
    build = ROOT / "build" / "runner"
    for command in (
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DBLSGAN_TESTS=OFF"],
        ["cmake", "--build", build, "--target", "blsgan-infer"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / "blsgan-infer"


@pytest.fixture(scope="session")
def library() -> Path:
    """The libonnxruntime.so inside the wheel that the Python path runs."""
    wheel = distribution("onnxruntime")
    found = [file for file in wheel.files or [] if file.name.startswith("libonnxruntime.so")]
    if not found:
        pytest.skip("this onnxruntime wheel has its library inside the Python module")
    return Path(wheel.locate_file(found[0]))


@pytest.fixture
def infer(runner, library, network):
    """Run blsgan-infer: the finished process."""

    def run(*arguments, weights=network, format="png"):
        needs = [] if weights is None else ["--weights", weights]
        if format == "png":
            require_png(runner)
        return subprocess.run(
            [str(part) for part in (runner, "--format", format, *needs, *arguments)],
            env={**os.environ, "BLSGAN_ONNXRUNTIME": str(library)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def require_png(runner):
    version = subprocess.run([runner, "--version"], capture_output=True, text=True, check=True)
    if "without PNG" in version.stdout:
        pytest.skip("blsgan-infer was built without libpng (Debian: libpng-dev)")


def write_pgm(path, values):
    full = 255 if values.dtype == np.uint8 else 65535
    header = f"P5\n# a comment\n{values.shape[1]} {values.shape[0]}\n{full}\n".encode()
    path.write_bytes(header + values.astype(values.dtype.newbyteorder(">")).tobytes())
    return path


def read_pgm(path):
    magic, size, full, pixels = path.read_bytes().split(b"\n", 3)
    assert (magic, full) == (b"P5", b"65535")
    width, height = map(int, size.split())
    return np.frombuffer(pixels, ">u2").reshape(height, width)


def read_png(path):
    with Image.open(path) as picture:
        assert picture.mode == "I;16"
        return np.asarray(picture)


def masks_of(joint):
    return "--upper-mask", joint.upper, "--lower-mask", joint.lower


def png_masks(joint):
    """The joint with its masks as PNG, which is what the runner reads."""
    paths = []
    for path in (joint.upper, joint.lower):
        paths.append(path.with_suffix(".png"))
        with Image.open(path) as picture:
            picture.save(paths[-1])
        path.unlink()
    return replace(joint, upper=paths[0], lower=paths[1])


def scaled(phantom, height, width):
    """The phantom at another size, where the bones are resampled for the network."""
    import cv2

    image = cv2.resize(phantom.image, (width, height), interpolation=cv2.INTER_AREA)
    masks = [
        cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        for mask in phantom.masks[:2]
    ]
    return replace(phantom, image=np.clip(image, 0, 1), masks=np.stack(masks))


CASES = {
    "as trained": lambda: joint_phantom(3),
    "another joint": lambda: joint_phantom(11, gap_px=-22.0),
    "no overlap": lambda: joint_phantom(3, gap_px=6.0),
    "shrunk for the network": lambda: scaled(joint_phantom(5), 601, 640),
    "enlarged for the network": lambda: scaled(joint_phantom(7), 100, 90),
    "capped crop": lambda: scaled(joint_phantom(3, gap_px=-30.0), 300, 5000),
    "thin bones in a large picture": lambda: scaled(joint_phantom(9), 1400, 70),
    "oblique": lambda: turned(joint_phantom(3)),
}


def turned(phantom):
    """Turned by 37 degrees about the middle, so that the joint's axis is not the picture's."""
    import cv2

    turn = cv2.getRotationMatrix2D((128, 128), 37, 0.8)
    image = cv2.warpAffine(phantom.image, turn, (256, 256))
    masks = [cv2.warpAffine(m.astype(np.uint8), turn, (256, 256)) > 0 for m in phantom.masks[:2]]
    return replace(phantom, image=np.clip(image, 0, 1), masks=np.stack(masks))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("case", CASES)
def test_the_pixels_are_those_of_the_python_path(infer, write_joint, network, tmp_path, case, bits):
    joint = png_masks(write_joint(tmp_path / "in", source=CASES[case](), bits=bits))
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "cpp")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wrote {tmp_path / 'cpp/joint_upper.png'} and 3 more files" in done.stdout
    arguments = ["separate", joint.image, *masks_of(joint), "-o", tmp_path / "python"]
    assert main([*map(str, arguments), "--weights", str(network), "--backend", "onnx"]) == 0
    for plane in PLANES:
        np.testing.assert_array_equal(
            read_png(tmp_path / f"cpp/joint_{plane}.png"),
            read_png(tmp_path / f"python/joint_{plane}.png"),
            err_msg=plane,
        )
    assert sorted(path.name for path in (tmp_path / "cpp").iterdir()) == sorted(
        f"joint_{plane}.png" for plane in PLANES
    )


def test_the_shipped_weights_and_what_both_say(infer, write_joint, tmp_path, capfd):
    joint = png_masks(write_joint(tmp_path / "in", bits=16))
    weights = ROOT / "blsgan/weights/lite.onnx"
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "cpp", weights=weights)
    assert main(["separate", *map(str, (joint.image, "-o", tmp_path / "python"))]) == 0
    python = capfd.readouterr().out
    assert done.stdout.splitlines()[0] == python.splitlines()[0]  # area, k, error
    for plane in PLANES:
        np.testing.assert_array_equal(
            read_png(tmp_path / f"cpp/joint_{plane}.png"),
            read_png(tmp_path / f"python/joint_{plane}.png"),
        )


def as_rgb(picture):
    return picture.convert("RGB")


def as_palette(picture):
    """A palette that is no ramp: index 0 is white, the others follow."""
    levels = np.roll(np.arange(256), 1)
    indexed = Image.fromarray(np.argsort(levels)[np.asarray(picture)].astype(np.uint8), "L")
    indexed = Image.frombytes("P", picture.size, indexed.tobytes())
    indexed.putpalette(np.repeat(levels, 3).astype(np.uint8).tobytes())
    return indexed


KINDS = {
    "colour that is grey": as_rgb,
    "palette": as_palette,
    "opaque alpha": lambda picture: picture.convert("LA"),
    "opaque colour": lambda picture: picture.convert("RGBA"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_png_is_read_alike(infer, write_joint, network, tmp_path, kind):
    joint = png_masks(write_joint(tmp_path / "in", bits=8))
    with Image.open(joint.image) as picture:
        KINDS[kind](picture).save(joint.image)
    with Image.open(joint.upper) as picture:  # and one bit for each pixel
        picture.convert("1").save(joint.upper)
    with Image.open(joint.image) as picture:
        np.testing.assert_array_equal(np.asarray(picture.convert("L")), joint.pixels)
    assert infer(joint.image, *masks_of(joint), "-o", tmp_path / "cpp").returncode == 0
    arguments = ["separate", joint.image, *masks_of(joint), "-o", tmp_path / "python"]
    assert main([*map(str, arguments), "--weights", str(network)]) == 0
    for plane in PLANES:
        np.testing.assert_array_equal(
            read_png(tmp_path / f"cpp/joint_{plane}.png"),
            read_png(tmp_path / f"python/joint_{plane}.png"),
        )


def test_what_a_png_says_beside_its_pixels(infer, write_joint, tmp_path):
    """A transparent level that a pixel has, and an orientation other than upright, are refused."""
    joint = png_masks(write_joint(tmp_path / "in", bits=8))
    right = (joint.image, *masks_of(joint), "-o", tmp_path / "out")
    with Image.open(joint.image) as picture:
        grey = picture.copy()
    exif = Image.Exif()
    exif[274] = 6
    for options, words in (
        ({"transparency": int(joint.pixels[5, 5])}, "is partly transparent"),
        ({"exif": exif}, "EXIF orientation 6"),
    ):
        grey.save(joint.image, **options)
        done = infer(*right)
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    unused = int(np.setdiff1d(np.arange(256), joint.pixels)[0])
    exif[274] = 1
    grey.save(joint.image, transparency=unused, exif=exif)
    assert infer(*right).returncode == 0


def exif_text(orientation, prefix=b"Exif\0\0"):
    """What older programs write for EXIF: its bytes as hexadecimal text."""
    exif = Image.Exif()
    exif[274] = orientation
    data = prefix + exif.tobytes().removeprefix(b"Exif\0\0")
    lines = [data.hex()[start : start + 72] for start in range(0, 2 * len(data), 72)]
    return "\n".join(["", "exif", f"{len(data):8d}", *lines, ""])


def xmp_text(orientation):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'


EXIF_KEY, XMP_KEY = "Raw profile type exif", "XML:com.adobe.xmp"
TURNED = {
    "EXIF, compressed": [("add_text", EXIF_KEY, exif_text(6), True)],
    "EXIF, plain, without prefix": [("add_text", EXIF_KEY, exif_text(8, b""))],
    "XMP attribute": [("add_itxt", XMP_KEY, xmp_text(3))],
    "XMP element": [("add_itxt", XMP_KEY, "<tiff:Orientation>6</tiff:Orientation>")],
    "XMP, compressed": [("add_itxt", XMP_KEY, xmp_text(6), "", "", True)],
    "the last text counts": [
        ("add_text", EXIF_KEY, exif_text(1)),
        ("add_text", EXIF_KEY, exif_text(6)),
    ],
}
UPRIGHT = {
    "upright": [("add_text", EXIF_KEY, exif_text(1))],
    "EXIF before XMP": [("add_text", EXIF_KEY, exif_text(1)), ("add_itxt", XMP_KEY, xmp_text(6))],
    "another text": [("add_text", "Comment", xmp_text(6))],
    "XMP without one": [("add_itxt", XMP_KEY, "<tiff:Orientation/>")],
}


@pytest.mark.parametrize("place", [*TURNED, *UPRIGHT])
def test_an_orientation_in_text_is_seen_where_python_sees_it(infer, write_joint, tmp_path, place):
    from PIL.PngImagePlugin import PngInfo

    from blsgan.io.files import read_file
    from blsgan.io.raster import decode_raster

    joint = png_masks(write_joint(tmp_path / "in", bits=8))
    info = PngInfo()
    for way, *arguments in {**TURNED, **UPRIGHT}[place]:
        getattr(info, way)(*arguments)
    with Image.open(joint.image) as picture:
        grey = picture.copy()
    grey.save(joint.image, pnginfo=info)
    assert bool(decode_raster(read_file(joint.image)).notes) == (place in TURNED)
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "out")
    assert ("EXIF orientation" in done.stderr) == (place in TURNED), done.stderr
    assert done.returncode == (1 if place in TURNED else 0)


def test_an_exif_text_that_is_none_is_damage_as_in_python(infer, write_joint, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    from blsgan.errors import InputError
    from blsgan.io.files import read_file
    from blsgan.io.raster import decode_raster

    joint = png_masks(write_joint(tmp_path / "in", bits=8))
    info = PngInfo()
    info.add_text(EXIF_KEY, "\nexif\n 4\nno digits\n")
    with Image.open(joint.image) as picture:
        grey = picture.copy()
    grey.save(joint.image, pnginfo=info)
    with pytest.raises(InputError, match="damaged or truncated"):
        decode_raster(read_file(joint.image))
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "out")
    assert (done.returncode, "damaged or truncated" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pgm_in_and_out(infer, write_joint, tmp_path, dtype):
    """What a build without libpng has; the pixels are those of the PNG path."""
    joint = png_masks(write_joint(tmp_path / "in", bits=8 if dtype == np.uint8 else 16))
    files = [write_pgm(tmp_path / "joint.pgm", joint.pixels)]
    for bone, mask in zip(("upper", "lower"), joint.masks, strict=True):
        files.append(write_pgm(tmp_path / f"{bone}.pgm", mask.astype(np.uint8)))
    out = tmp_path / "out"
    arguments = (files[0], "--upper-mask", files[1], "--lower-mask", files[2], "-o", out)
    assert infer(*arguments, format="pgm").returncode == 0
    assert infer(joint.image, *masks_of(joint), "-o", out).returncode == 0
    for plane in PLANES:
        np.testing.assert_array_equal(
            read_pgm(out / f"joint_{plane}.pgm"), read_png(out / f"joint_{plane}.png")
        )


def test_bits_and_inversion_are_decided_as_in_python(infer, write_joint, network, tmp_path):
    joint = png_masks(write_joint(tmp_path / "in"))
    twelve = 4095 - joint.pixels // 16  # bone dark, 12 of 16 bits
    Image.fromarray(twelve).save(joint.image)
    for name, depth in {"guessed": (), "given": ("--bit-depth", "13")}.items():
        extra = ("--invert", *depth)
        out = tmp_path / name
        done = infer(joint.image, *masks_of(joint), "-o", out / "cpp", *extra)
        assert done.returncode == 0, done.stderr
        assert ("16-bit file taken as 12 bit" in done.stdout) == (name == "guessed")
        arguments = [joint.image, *masks_of(joint), "-o", out / "python", *extra]
        assert main(["separate", *map(str, arguments), "--weights", str(network)]) == 0
        for plane in PLANES:
            cpp = read_png(out / f"cpp/joint_{plane}.png")
            np.testing.assert_array_equal(cpp, read_png(out / f"python/joint_{plane}.png"))


def save(path, picture, **options):
    Image.fromarray(picture).save(path, **options)


def colour(path):
    save(path, np.stack([np.full((256, 256), level, np.uint8) for level in (1, 2, 9)], axis=-1))


def see_through(path):
    with Image.open(path) as picture:
        grey = picture.convert("RGBA")
    grey.putalpha(120)
    grey.save(path)


def deep_colour(path):
    import cv2

    cv2.imwrite(str(path), np.full((256, 256, 3), 4000, np.uint16))


def fill(path, value):
    save(path, np.full((256, 256), value, np.uint8))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:900])


def make_folder(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "missing": (lambda joint: joint.image.unlink(), "does not exist"),
    "empty": (lambda joint: joint.image.write_bytes(b""), "is empty (0 bytes)"),
    "no image": (lambda joint: joint.image.write_bytes(b"GIF89a" * 9), "is not a readable image"),
    "truncated": (lambda joint: cut_short(joint.image), "damaged or truncated"),
    "constant": (lambda joint: fill(joint.image, 7), "is constant"),
    "colour": (lambda joint: colour(joint.image), "differ by up to 8 of 255"),
    "deep colour": (lambda joint: deep_colour(joint.image), "at 16 bit per channel"),
    "transparent": (lambda joint: see_through(joint.upper), "is partly transparent"),
    "other size": (lambda joint: save(joint.upper, np.eye(9, dtype=np.uint8)), "is 9x9 but the"),
    "black mask": (lambda joint: fill(joint.lower, 0), "no white pixel"),
    "white mask": (lambda joint: fill(joint.lower, 255), "covers everything"),
    "same mask": (lambda joint: shutil.copy(joint.upper, joint.lower), "hold the same mask"),
    "radiograph as mask": (lambda joint: shutil.copy(joint.image, joint.upper), "are grey, beside"),
    "folder": (lambda joint: make_folder(joint.upper), "is a folder"),
    "masks cover all": (
        lambda joint: save(joint.lower, (~joint.masks[0]).astype(np.uint8)),
        "cover every pixel",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bad_data_is_one_sentence_and_status_1_as_in_python(
    infer, write_joint, tmp_path, capfd, damage
):
    joint = png_masks(write_joint(tmp_path / "in", bits=8))
    harm, words = DAMAGE[damage]
    harm(joint)
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert done.stderr.startswith("blsgan-infer: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    arguments = [joint.image, *masks_of(joint), "-o", tmp_path / "python"]
    assert main(["separate", *map(str, arguments)]) == 1
    assert words in capfd.readouterr().err


def test_a_wrong_command_is_status_2(infer, write_joint, tmp_path):
    joint = png_masks(write_joint(tmp_path / "in"))
    right = (joint.image, *masks_of(joint), "-o", tmp_path / "out")
    for arguments, words in (
        (right[1:], "0 images were given"),
        (right[:3] + right[5:], "--lower-mask is missing"),
        ((*right, "--threads", "0"), "--threads is 0; give a whole number from 1 to"),
        ((*right, "--bit-depth", "17"), "--bit-depth is 17"),
        ((*right, "--frobnicate"), "--frobnicate is not an option"),
        ((*right, "--weights"), "--weights needs a value"),
    ):
        done = infer(*arguments, weights=None)
        assert (done.returncode, done.stdout) == (2, ""), arguments
        assert words in done.stderr
    done = infer(*right, format="gif")
    assert (done.returncode, "give png or pgm" in done.stderr) == (2, True)


def test_an_input_is_never_overwritten(infer, write_joint, tmp_path):
    joint = png_masks(write_joint(tmp_path))
    mask = joint.upper.rename(tmp_path / "joint_upper.png")
    before = mask.read_bytes()
    done = infer(joint.image, "--upper-mask", mask, "--lower-mask", joint.lower, "-o", tmp_path)
    assert (done.returncode, "would be overwritten" in done.stderr) == (2, True)
    assert mask.read_bytes() == before


def test_weights_that_are_none(infer, write_joint, make_network, tmp_path):
    joint = png_masks(write_joint(tmp_path / "in"))
    right = (joint.image, *masks_of(joint), "-o", tmp_path / "out")
    noise, other = tmp_path / "noise.onnx", tmp_path / "other.onnx"
    noise.write_bytes(b"\x08\x07not a network" * 40)
    make_network(other, mask_channels=3)
    plan = tmp_path / "some.engine"
    plan.write_bytes(b"ptrt" * 100)
    text = tmp_path / "some.txt"
    text.write_text("weights")
    for weights, words in (
        (noise, "is not a network that can be run"),
        (other, "is of another architecture: it maps image [*,1,*,*], masks [*,3,*,*]"),
        (plan, "TensorRT"),
        (text, "give an .onnx or an .engine file"),
        (tmp_path / "none.onnx", "does not exist"),
    ):
        done = infer(*right, weights=weights)
        assert done.returncode == 1, done.stderr
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
    done = infer(*right, "--onnxruntime", text)
    assert (done.returncode, "ONNX Runtime cannot be loaded" in done.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(infer, write_joint, tmp_path):
    joint = png_masks(write_joint(tmp_path / "in"))
    (tmp_path / "out").mkdir(mode=0o500)
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "out")
    assert (done.returncode, "not writable" in done.stderr) == (1, True)


def test_nothing_is_left_where_a_result_cannot_be_written(infer, write_joint, tmp_path):
    joint = png_masks(write_joint(tmp_path / "in"))
    out = tmp_path / "new/out"
    (tmp_path / "file").write_text("in the way")
    done = infer(joint.image, *masks_of(joint), "-o", tmp_path / "file/out")
    assert (done.returncode, "cannot be written" in done.stderr) == (1, True)
    out.mkdir(parents=True)
    (out / "joint_residual.png").mkdir()
    done = infer(joint.image, *masks_of(joint), "-o", out)
    assert (done.returncode, "a folder of that name" in done.stderr) == (1, True)
    assert [path.name for path in out.iterdir()] == ["joint_residual.png"]


def test_damaged_files_never_crash_it(runner, library, network, write_joint, tmp_path):
    """Bytes changed, cut and repeated: a sentence with status 1, or a separation; no signal."""
    require_png(runner)
    joint = png_masks(write_joint(tmp_path / "in", bits=8))
    pgm = write_pgm(tmp_path / "in.pgm", joint.pixels)
    chance = random.Random(0)
    broken = tmp_path / "broken"
    statuses = set()
    for trial in range(60):
        source = (joint.image, pgm, network)[trial % 3]
        data = bytearray(source.read_bytes())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(min(len(data), 400))] = chance.randrange(256)
        if trial % 2:
            del data[chance.randrange(1, len(data)) :]
        path = broken.with_suffix(source.suffix)
        path.write_bytes(data)
        image, weights = (joint.image, path) if source == network else (path, network)
        done = subprocess.run(
            [runner, image, *masks_of(joint), "-o", tmp_path / "out", "--weights", weights],
            env={**os.environ, "BLSGAN_ONNXRUNTIME": str(library)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1), (trial, done)
        assert done.stderr.count("\n") == done.returncode
        statuses.add(done.returncode)
    assert 1 in statuses


def test_weights_in_another_file_are_refused(infer, network, write_joint, tmp_path):
    import onnx

    model = onnx.load(network)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "/etc/hostname")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    joint = png_masks(write_joint(tmp_path))
    done = infer(
        joint.image, *masks_of(joint), "--output", tmp_path / "out", weights=tmp_path / "m.onnx"
    )
    assert done.returncode == 1
    assert "m.onnx keeps tensors in other files" in done.stderr


def test_the_runner_tells_nobody(runner, library, network, watched_machine, write_joint, tmp_path):
    joint = write_joint(tmp_path)
    picture = write_pgm(tmp_path / "j.pgm", joint.pixels)
    upper, lower = (
        write_pgm(tmp_path / f"{bone}.pgm", mask.astype(np.uint8) * 255)
        for bone, mask in zip(("upper", "lower"), joint.masks, strict=True)
    )
    done = watched_machine.run(
        runner, "--format", "pgm", "--weights", network, "--onnxruntime", library, picture,
        "--upper-mask", upper, "--lower-mask", lower, "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    watched_machine.left_alone()
