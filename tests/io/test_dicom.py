"""DICOM: the standard's order of transforms, the spacing kept, the patient left behind."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from blsgan.errors import InputError
from blsgan.io.files import read_file
from blsgan.io.radiograph import anonymous_name, is_path_private, read_radiograph

VALUES = (np.arange(32 * 48, dtype=np.uint16) * 2).reshape(32, 48)  # 0..3070, 12 bit stored


def dataset(values=VALUES, **elements):
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=["a"]
    )
    made.PatientName = "Hopper^Grace"
    made.PatientID = "MRN-4711"
    made.Rows, made.Columns = values.shape[-2:]
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = "MONOCHROME2"
    made.BitsAllocated = 16
    made.BitsStored = 12
    made.HighBit = 11
    made.PixelRepresentation = 1 if values.dtype.kind == "i" else 0
    made.PixelData = values.tobytes()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def write(path, made):
    dcmwrite(path, made, enforce_file_format=True)
    return path


@pytest.fixture
def save(tmp_path):
    return lambda name="a.dcm", values=VALUES, **elements: write(
        tmp_path / name, dataset(values, **elements)
    )


def linear_window(values, center, width):
    """PS3.3 C.11.2.1.2.1 with an output range of [0,1]."""
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def test_window(save):
    radiograph = read_radiograph(save(WindowCenter=1500, WindowWidth=2000))
    np.testing.assert_allclose(
        radiograph.pixels, linear_window(VALUES.astype(float), 1500, 2000), atol=1e-6
    )
    assert radiograph.pixels.dtype == np.float32
    assert radiograph.format == "DICOM"
    assert radiograph.bits == 12


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR_EXACT", lambda x: np.clip((x - 1500) / 2000 + 0.5, 0, 1)),
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 1500) / 2000))),
    ],
)
def test_other_voi_functions(save, function, expected):
    path = save(WindowCenter=1500, WindowWidth=2000, VOILUTFunction=function)
    np.testing.assert_allclose(
        read_radiograph(path).pixels, expected(VALUES.astype(float)), atol=1e-6
    )


def test_first_of_several_windows(save):
    path = save(WindowCenter=[1500, 100], WindowWidth=[2000, 50])
    np.testing.assert_allclose(
        read_radiograph(path).pixels, linear_window(VALUES.astype(float), 1500, 2000), atol=1e-6
    )


def test_monochrome1_is_inverted_after_the_voi_transform(save):
    window = {"WindowCenter": 1200, "WindowWidth": 1500}  # not symmetric: the order shows
    plain = read_radiograph(save("2.dcm", **window)).pixels
    radiograph = read_radiograph(save("1.dcm", PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_allclose(radiograph.pixels, 1 - plain, atol=1e-7)
    assert any("MONOCHROME1" in note for note in radiograph.notes)


def test_rescale_slope_of_either_sign(save):
    for slope, intercept in ((2.0, -100.0), (-1.0, 4095.0)):
        rescaled = VALUES * slope + intercept
        path = save(
            RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=1500, WindowWidth=2000
        )
        np.testing.assert_allclose(
            read_radiograph(path).pixels, linear_window(rescaled, 1500, 2000), atol=1e-6
        )


def test_voi_lut(save):
    table = np.array([int(1023 * (index / 4095) ** 2) for index in range(4096)], np.uint16)
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 10]
    item.add_new("LUTData", "OW", table.tobytes())
    radiograph = read_radiograph(save(VOILUTSequence=[item]))
    np.testing.assert_allclose(radiograph.pixels, table[VALUES] / 1023, atol=1e-6)


def test_signed_values(save):
    values = VALUES.astype(np.int16) - 1100  # within 12 bits
    path = save(values=values, WindowCenter=200, WindowWidth=1800)
    np.testing.assert_allclose(
        read_radiograph(path).pixels, linear_window(values.astype(float), 200, 1800), atol=1e-6
    )


def test_more_levels_than_16_bits_have(save):
    values = VALUES.astype(np.uint32) * 5000
    path = save(values=values, BitsAllocated=32, BitsStored=24, HighBit=23)
    np.testing.assert_allclose(read_radiograph(path).pixels, values / (2**24 - 1), atol=1e-6)


def test_without_voi(save):
    radiograph = read_radiograph(save())
    np.testing.assert_allclose(radiograph.pixels, VALUES / 4095, atol=1e-6)
    assert "no VOI transform" in radiograph.notes[0]


@pytest.mark.parametrize("highest", [200, 1000, 4095])  # never this picture's own range
@pytest.mark.parametrize("slope", [1, 0.5, -1])
@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_without_voi_the_range_is_the_stored_bits(save, highest, slope, kind):
    signed = kind is np.int16
    values = (VALUES % (highest + 1)).astype(np.int64) - 2048 * signed
    rescale = {} if slope == 1 and signed else {"RescaleSlope": slope, "RescaleIntercept": -3}
    share = (values + 2048 * signed) / 4095
    radiograph = read_radiograph(save(values=values.astype(kind), **rescale))
    np.testing.assert_allclose(radiograph.pixels, share if slope > 0 else 1 - share, atol=1e-6)
    assert radiograph.bits == 12


def test_without_voi_a_bit_depth_given_counts(save):
    values = (VALUES // 4).astype(np.uint16)
    radiograph = read_radiograph(save(values=values), bit_depth=10)
    np.testing.assert_allclose(radiograph.pixels, values / 1023, atol=1e-6)
    assert radiograph.bits == 10
    with pytest.raises(InputError, match="values from 0 to 767, more than 9 bits hold"):
        read_radiograph(save(values=values), bit_depth=9)
    windowed = save(values=values, WindowCenter=1500, WindowWidth=2000)
    assert any("was not used" in note for note in read_radiograph(windowed, bit_depth=10).notes)


def test_modality_lut_without_voi(save):
    table = (np.arange(4096) * 9).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.add_new("LUTData", "OW", table.tobytes())
    radiograph = read_radiograph(save(ModalityLUTSequence=[item]))
    np.testing.assert_allclose(radiograph.pixels, table[VALUES] / 65535, atol=1e-6)


@pytest.mark.parametrize("elements", [{"HighBit": 15}, {"HighBit": 10}, {"BitsStored": 17}])
def test_bits_that_do_not_fit_together(save, elements):
    with pytest.raises(InputError, match=r"do not fit together; export it with HighBit"):
        read_radiograph(save(**elements))


def test_overlay_bits_above_the_stored_ones_are_no_intensity(save):
    plain = read_radiograph(save("a.dcm", WindowCenter=1500, WindowWidth=2000)).pixels
    with_overlay = (VALUES | np.uint16(0x4000)).astype(np.uint16)
    overlaid = read_radiograph(
        save("b.dcm", values=with_overlay, WindowCenter=1500, WindowWidth=2000)
    )
    np.testing.assert_array_equal(overlaid.pixels, plain)


def test_spacing_and_where_it_is_from(save):
    calibrated = read_radiograph(save(PixelSpacing=[0.1, 0.2], ImagerPixelSpacing=[0.3, 0.4]))
    assert (calibrated.pixel_spacing.row_mm, calibrated.pixel_spacing.column_mm) == (0.1, 0.2)
    assert calibrated.pixel_spacing.source == "PixelSpacing"
    detector = read_radiograph(save(ImagerPixelSpacing=[0.15, 0.15]))
    assert detector.pixel_spacing.source == "ImagerPixelSpacing"
    assert any("detector" in note for note in detector.notes)
    assert read_radiograph(save()).pixel_spacing is None
    for spacing in ([0, 0], [-0.1, 0.1], [1e-7, 1e-7], [0.1, 150], ["1e-300", "1e300"]):
        unbelievable = read_radiograph(save(PixelSpacing=spacing))
        assert unbelievable.pixel_spacing is None
        assert any("PixelSpacing was ignored" in note for note in unbelievable.notes)


def test_nothing_of_the_patient_is_kept(save, tmp_path):
    path = save("plain.png")  # known by its content, whatever its name
    radiograph = read_radiograph(path)
    assert "hopper" not in repr(radiograph).casefold()
    assert is_path_private(read_file(path))
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    assert not is_path_private(read_file(tmp_path / "b.png"))


def test_each_joint_of_one_radiograph_has_a_name_of_its_own():
    one, other = (anonymous_name("f" * 64, masks) for masks in (("a", "b"), ("b", "a")))
    assert one != other
    assert one == anonymous_name("f" * 64, ("a", "b"))
    assert {name[:22] for name in (one, other)} == {"anonymous-" + "f" * 12}


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_transfer_syntaxes_that_ship(tmp_path, syntax):
    made = dataset(WindowCenter=1500, WindowWidth=2000)
    made.compress(syntax, generate_instance_uid=False)
    radiograph = read_radiograph(write(tmp_path / "a.dcm", made))
    np.testing.assert_allclose(
        radiograph.pixels, linear_window(VALUES.astype(float), 1500, 2000), atol=1e-6
    )


def encapsulated(syntax):
    from pydicom.encaps import encapsulate

    made = dataset()
    made.PixelData = encapsulate([b"\xff\xd8 not really"])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.file_meta.TransferSyntaxUID = syntax
    return made


def test_transfer_syntax_without_a_plugin(tmp_path, monkeypatch):
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", False)
    path = write(tmp_path / "a.dcm", encapsulated(JPEGLosslessSV1))
    with pytest.raises(InputError, match=r"JPEG Lossless.*no installed plugin.*blsgan\[dicom\]"):
        read_radiograph(path)


def test_transfer_syntax_nobody_decodes(tmp_path):
    path = write(tmp_path / "a.dcm", encapsulated(MPEG2MPML))
    with pytest.raises(InputError, match="cannot decode"):
        read_radiograph(path)


def test_deflated_files_are_not_inflated(tmp_path):
    made = dataset()
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = write(tmp_path / "a.dcm", made)
    with pytest.raises(InputError, match="is a deflated DICOM file"):
        read_radiograph(path)
    bare = path.read_bytes()[132:]  # neither without a preamble
    path.write_bytes(bare)
    with pytest.raises(InputError, match="is a deflated DICOM file"):
        read_radiograph(path)


def jpeg_ls_header(rows, columns, channels):
    frame = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xf7\x00\x0b\x08"  # an APP0, a fill byte
    return frame + struct.pack(">HHB", rows, columns, channels) + b"\x01\x11\x00" * 9


@pytest.mark.parametrize("size", [(32, 48, 2), (60000, 60000, 1), (48, 32, 1)])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless])
def test_a_compressed_picture_of_another_size_is_not_decoded(tmp_path, monkeypatch, syntax, size):
    from pydicom import pixels
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", True)
    monkeypatch.setattr(pixels, "pixel_array", None)
    rows, columns, channels = size
    made = dataset()
    if syntax == JPEG2000Lossless:
        made.compress(syntax, generate_instance_uid=False)
        frame = bytearray(get_frame(made.PixelData, 0, number_of_frames=1))
        struct.pack_into(">2I", frame, 8, columns, rows)
        struct.pack_into(">H", frame, 40, channels)
    else:
        made.file_meta.TransferSyntaxUID = syntax
        frame = jpeg_ls_header(*size)
    made.PixelData = encapsulate([bytes(frame)])
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    path = write(tmp_path / "a.dcm", made)
    with pytest.raises(InputError, match=f"picture has {columns}x{rows} in {channels};"):
        read_radiograph(path)


def test_a_compressed_picture_without_a_header(tmp_path):
    with pytest.raises(InputError, match="without a header"):
        read_radiograph(write(tmp_path / "a.dcm", encapsulated(JPEG2000Lossless)))


def test_several_frames(save):
    values = np.stack([VALUES, VALUES])
    with pytest.raises(InputError, match="2 frames"):
        read_radiograph(save(values=values, NumberOfFrames=2))


def test_without_pixel_data(tmp_path):
    made = dataset()
    del made.PixelData
    with pytest.raises(InputError, match="without pixel data"):
        read_radiograph(write(tmp_path / "a.dcm", made))


def test_colour(save):
    with pytest.raises(InputError, match="is RGB, not a greyscale"):
        read_radiograph(
            save(
                values=np.zeros((32, 48), np.uint16),
                SamplesPerPixel=3,
                PhotometricInterpretation="RGB",
            )
        )


def test_constant_and_huge(save):
    with pytest.raises(InputError, match="constant"):
        read_radiograph(save(values=np.full((32, 48), 9, np.uint16)))
    with pytest.raises(InputError, match="20000x20000 pixels, more than"):
        read_radiograph(save(Rows=20000, Columns=20000))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_truncated(save, share):
    path = save()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"a\.dcm"):
        read_radiograph(path)


def test_not_dicom_at_all(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"certainly not dicom " * 30)
    with pytest.raises(InputError, match=r"a\.dcm"):
        read_radiograph(tmp_path / "a.dcm")


def test_file_without_preamble(tmp_path, save):
    path = save(WindowCenter=1500, WindowWidth=2000)
    made = dataset(WindowCenter=1500, WindowWidth=2000)
    del made.file_meta
    bare = tmp_path / "bare.dcm"
    made.save_as(bare, implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_radiograph(bare).pixels, read_radiograph(path).pixels)


def test_errors_do_not_quote_the_header(tmp_path, save):
    data = bytearray(save().read_bytes())
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(60):
        damaged = data.copy()
        for position in rng.integers(132, len(data) - VALUES.nbytes, 6):
            damaged[position] = rng.integers(256)
        (tmp_path / "b.dcm").write_bytes(damaged)
        try:
            read_radiograph(tmp_path / "b.dcm")
        except InputError as error:
            messages.append(str(error))
    assert messages
    assert not any("opper" in message for message in messages)


def lut(table, depth, first=0, **more):
    item = Dataset()
    item.LUTDescriptor = [len(table) % 65536, first, depth]
    item.add_new("LUTData", "OW", np.asarray(table, np.uint16).tobytes())
    for keyword, value in more.items():
        setattr(item, keyword, value)
    return item


def raw(save, keyword, value, vr="DS", **elements):
    """A file with an element whose bytes no library would write."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(keyword)
    made = dataset(**elements)
    made._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return made


class TestAsHospitalsWriteIt:
    """Intact files that say things in ways of their own."""

    @pytest.mark.parametrize(
        "empty",
        [
            {"RescaleSlope": None, "RescaleIntercept": None},
            {"ModalityLUTSequence": []},
            {"ModalityLUTSequence": [Dataset()]},
            {"VOILUTSequence": [Dataset()]},
            {"WindowCenter": None, "WindowWidth": None},
            {"VOILUTFunction": ""},
            {"NumberOfFrames": None},
            {"PresentationLUTShape": ""},
        ],
        ids=str,
    )
    def test_what_is_empty_is_absent(self, save, empty):
        np.testing.assert_array_equal(
            read_radiograph(save(**empty)).pixels, read_radiograph(save("b.dcm")).pixels
        )

    def test_an_empty_table_is_noted(self, save):
        notes = read_radiograph(save(VOILUTSequence=[Dataset()])).notes
        assert "VOILUTSequence was ignored: its item is empty" in notes

    @pytest.mark.parametrize("depth", [10, 12, 14, 16])
    @pytest.mark.parametrize("kind", ["ModalityLUTSequence", "VOILUTSequence"])
    def test_a_table_counts_by_what_it_holds(self, save, kind, depth):
        """12 bits declared as 16 would be 16 times too dark; 10 cannot hold them."""
        table = np.arange(4096)[::-1]
        radiograph = read_radiograph(save(**{kind: [lut(table, depth)]}))
        np.testing.assert_allclose(radiograph.pixels, table[VALUES] / 4095, atol=1e-6)
        said = f"{kind}: a table of {depth} bit that holds 12 bit, taken as these"
        assert (said in radiograph.notes) == (depth != 12)

    def test_a_table_of_65536_entries_and_one_of_packed_bytes(self, save):
        radiograph = read_radiograph(save(VOILUTSequence=[lut(np.arange(65536), 16)]))
        np.testing.assert_allclose(radiograph.pixels, VALUES / 65535, atol=1e-6)
        item = lut([0], 8)
        item.LUTDescriptor = [4096, 0, 8]
        item.LUTData = (np.arange(4096) // 16).astype(np.uint8).tobytes()
        radiograph = read_radiograph(save(VOILUTSequence=[item]))
        np.testing.assert_allclose(radiograph.pixels, (VALUES // 16) / 255, atol=1e-6)

    def test_a_table_that_starts_below_zero(self, save):
        values = VALUES.astype(np.int16) - 1100
        item = lut(np.arange(4096), 12, first=-2048)
        radiograph = read_radiograph(save(values=values, VOILUTSequence=[item]))
        np.testing.assert_allclose(radiograph.pixels, (values + 2048) / 4095, atol=1e-6)

    def test_a_table_with_too_few_entries_is_said(self, save):
        item = lut(np.arange(100), 12)
        item.LUTDescriptor = [4096, 0, 12]
        with pytest.raises(InputError, match="VOILUTSequence has 100 of 4096 entries"):
            read_radiograph(save(VOILUTSequence=[item]))

    @pytest.mark.parametrize("width", [b"0 ", b"-5", b"2000,5", b"wide", b"NaN "])
    def test_a_window_that_is_none_is_ignored_and_noted(self, save, tmp_path, width):
        path = write(tmp_path / "w.dcm", raw(save, "WindowWidth", width, WindowCenter=1500))
        radiograph = read_radiograph(path)
        np.testing.assert_allclose(radiograph.pixels, VALUES / 4095, atol=1e-6)
        assert any(note.startswith("the window was ignored") for note in radiograph.notes)

    def test_the_first_window_that_is_one_counts(self, save):
        radiograph = read_radiograph(save(WindowCenter=[9, 1500], WindowWidth=[0, 2000]))
        np.testing.assert_allclose(
            radiograph.pixels, linear_window(VALUES.astype(float), 1500, 2000), atol=1e-6
        )
        assert any("first windows were ignored" in note for note in radiograph.notes)

    def test_a_width_below_one_is_applied(self, save):
        radiograph = read_radiograph(
            save(RescaleSlope=2**-12, RescaleIntercept=0, WindowCenter=0.4, WindowWidth=0.5)
        )
        expected = np.clip((VALUES / 4096 - 0.4) / 0.5 + 0.5, 0, 1)
        np.testing.assert_allclose(radiograph.pixels, expected, atol=1e-6)
        step = read_radiograph(save(WindowCenter=1500, WindowWidth=1)).pixels
        np.testing.assert_array_equal(step, VALUES > 1499.5)

    def test_a_window_beside_all_values_is_not_a_constant_picture(self, save):
        with pytest.raises(InputError, match="window or VOI table makes every pixel the same"):
            read_radiograph(save(WindowCenter=60000, WindowWidth=10))

    def test_an_unknown_voi_function_is_linear_with_a_note(self, save):
        radiograph = read_radiograph(
            save(WindowCenter=1500, WindowWidth=2000, VOILUTFunction="GAMMA22")
        )
        np.testing.assert_allclose(
            radiograph.pixels, linear_window(VALUES.astype(float), 1500, 2000), atol=1e-6
        )
        assert any("VOILUTFunction was ignored" in note for note in radiograph.notes)
        assert not any("GAMMA22" in note for note in radiograph.notes)

    @pytest.mark.parametrize(
        "keyword",
        [
            *("PixelRepresentation", "BitsStored", "BitsAllocated", "SamplesPerPixel"),
            *("Rows", "Columns"),
        ],
    )
    def test_a_missing_element_is_named(self, tmp_path, keyword):
        made = dataset()
        made["PixelData"].VR = "OW"  # which the writer else asks BitsAllocated for
        delattr(made, keyword)
        with pytest.raises(InputError, match=f"lacks the element {keyword}"):
            read_radiograph(write(tmp_path / "a.dcm", made))

    @pytest.mark.parametrize("keyword", ["RescaleSlope", "NumberOfFrames"])
    def test_a_damaged_element_is_named_and_not_quoted(self, save, tmp_path, keyword):
        vr = "IS" if keyword == "NumberOfFrames" else "DS"
        made = raw(save, keyword, b"Hopper", vr, RescaleIntercept=0)
        with pytest.raises(InputError, match=f"its element {keyword} is damaged") as error:
            read_radiograph(write(tmp_path / "a.dcm", made))
        assert "Hopper" not in str(error.value)

    def test_bits_that_only_the_container_has(self, save):
        """As for 16-bit PNG: divided by 65535 a radiograph of 12 bits would be black."""
        radiograph = read_radiograph(save(BitsStored=16, HighBit=15))
        np.testing.assert_allclose(radiograph.pixels, VALUES / 4095, atol=1e-6)
        assert radiograph.bits == 12
        assert any("16 bits stored, taken as 12 bit" in note for note in radiograph.notes)
        given = read_radiograph(save(BitsStored=16, HighBit=15), bit_depth=16)
        np.testing.assert_allclose(given.pixels, VALUES / 65535, atol=1e-6)

    @pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
    def test_the_presentation_lut_shape_inverts_once(self, save, photometric):
        plain = read_radiograph(save()).pixels
        inverse = read_radiograph(
            save(PresentationLUTShape="INVERSE", PhotometricInterpretation=photometric)
        )
        np.testing.assert_allclose(inverse.pixels, 1 - plain, atol=1e-6)
        assert sum("inverted after the VOI transform" in note for note in inverse.notes) == 1

    @pytest.mark.parametrize(
        ("uid", "name"),
        [
            ("1.2.840.10008.5.1.4.1.1.66.4", "Segmentation Storage"),
            ("1.2.840.10008.5.1.4.1.1.88.33", "Comprehensive SR Storage"),
            ("1.2.840.10008.5.1.4.1.1.88.67", "X-Ray Radiation Dose SR Storage"),
            ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State Storage"),
            ("1.2.840.10008.5.1.4.1.1.2", "CT Image Storage"),
        ],
    )
    def test_what_is_no_radiograph_is_refused_by_its_class(self, save, uid, name):
        with pytest.raises(InputError, match=f"is a DICOM object of {name}; give the radiograph"):
            read_radiograph(save(SOPClassUID=uid))

    @pytest.mark.parametrize(
        "uid",
        [
            "1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1",
            "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.3",
            "1.2.840.10008.5.1.4.1.1.1.3", "1.2.840.10008.5.1.4.1.1.12.2",
            "1.2.840.10008.5.1.4.1.1.77.1.4", "1.2.3.4.5",
        ],
    )  # fmt: skip
    def test_what_may_be_a_radiograph_is_read(self, save, uid):
        assert read_radiograph(save(SOPClassUID=uid)).bits == 12

    def test_a_localiser_is_refused(self, save):
        with pytest.raises(InputError, match="is a localiser"):
            read_radiograph(save(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))

    def test_a_jpeg_that_no_plugin_decodes_is_said(self, tmp_path):
        from pydicom.encaps import encapsulate

        made = encapsulated(JPEGExtended12Bit)
        frame = b"\xff\xd8\xff\xc1\x00\x0b\x0c" + struct.pack(">HHB", *VALUES.shape, 1)
        made.PixelData = encapsulate([frame + b"\x01\x11\x00\xff\xd9"])
        with pytest.raises(InputError, match=r"JPEG Extended.* with 12 bits, and no inst"):
            read_radiograph(write(tmp_path / "a.dcm", made))


@pytest.mark.parametrize("implicit", [True, False])
def test_without_preamble_and_ending_it_is_dicom(tmp_path, save, implicit):
    """IM000001 in the folder of a CD."""
    made = dataset()
    del made.file_meta
    bare = tmp_path / "IM000001"
    made.save_as(bare, implicit_vr=implicit, little_endian=True)
    file = read_file(bare)
    assert file.data[128:132] != b"DICM"
    assert is_path_private(file)
    if implicit:  # the transfer syntax of files without a preamble, by the standard
        np.testing.assert_array_equal(read_radiograph(bare).pixels, read_radiograph(save()).pixels)
