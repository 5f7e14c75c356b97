"DICOM and NIfTI: gray values and places against independent computations, faults, studies, the command line."

import io
import json
import struct
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from typer.testing import CliRunner

from attnbootreg import Study, load_image, load_study, regularize, run_study
from attnbootreg.cli import app
from attnbootreg.scans import AXES, is_scan, list_slices, load_scan, read_slice, save_nifti, slice_bytes
from attnbootreg.sources import list_sources

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def dicom(file, stored, bits=12, signed=False, syntax=uid.ExplicitVRLittleEndian, samples=1, **elements):
    "A DICOM file of one frame or, with NumberOfFrames, of several."
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID, data.SOPInstanceUID, data.PhotometricInterpretation = uid.CTImageStorage, uid.generate_uid(), "MONOCHROME2"
    data.Rows, data.Columns = stored.shape[-3:-1] if samples > 1 else stored.shape[-2:]
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit = samples, 8 * stored.itemsize, bits, bits - 1
    data.PixelRepresentation, data.PixelData = int(signed), stored.tobytes()
    if samples > 1:
        data.PlanarConfiguration = 0
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(file, enforce_file_format=True)
    return file


def dataset(**elements):
    made = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def by_hand(value, function, center, width):
    "C.11.2.1 of part 3 of the standard, for one value and gray from 0 to 1, as its pseudo-code has it."
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (value - center) / width))
    shift, less = (0.5, 1) if function == "LINEAR" else (0, 0)
    if value <= center - shift - (width - less) / 2:
        return 0.0
    if value > center - shift + (width - less) / 2:
        return 1.0
    return (value - (center - shift)) / (width - less) + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize("slope, intercept", [(1, -1024), (0.5, 10), (-2, 3000)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_of_the_file(tmp_path, function, slope, intercept, photometric):
    named = {"VOILUTFunction": function} if function else {}
    window = dict(WindowCenter=[40, -600], WindowWidth=[400, 1500], RescaleSlope=slope, RescaleIntercept=intercept)
    scan = load_scan(dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation=photometric, **window, **named))
    expected = np.array([by_hand(slope * float(v) + intercept, function or "LINEAR", 40, 400) for v in RAMP.flat]).reshape(64, 64)
    np.testing.assert_allclose(scan.values[0], slope * RAMP.astype(float) + intercept)
    np.testing.assert_allclose(scan[0], 1 - expected if photometric == "MONOCHROME1" else expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1000, 1000), st.floats(1, 3000))
def test_window_of_the_user(tmp_path_factory, center, width):
    file = dicom(tmp_path_factory.mktemp("user") / "a.dcm", RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=0)
    expected = np.interp(RAMP.astype(float) - 1024, [center - width / 2, center + width / 2], [0, 1])
    np.testing.assert_allclose(load_scan(file, (center, width))[0], expected, atol=2e-3 / width + 1e-5)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_table_of_the_file(tmp_path, bits):
    "A table goes before a window; values beside it take its first and its last entry."
    entries = np.linspace(2**bits - 1, 0, 1000).astype(np.uint16)
    table = dataset(LUTDescriptor=[1000, 500, bits], LUTData=entries.tolist())
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    scan = load_scan(dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2))
    expected = np.array([entries[min(max(int(v) - 500, 0), 999)] for v in RAMP.flat]).reshape(64, 64) / (2**bits - 1)
    np.testing.assert_allclose(scan[0], expected, atol=1e-6)


def test_modality_table(tmp_path):
    entries = (np.arange(4096) * 7 % 4096).astype(np.uint16)
    table = dataset(LUTDescriptor=[4096, 0, 12], LUTData=entries.tolist(), ModalityLUTType="US")
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    scan = load_scan(dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[table]), window=(2000, 1000))
    np.testing.assert_array_equal(scan.values[0], entries[RAMP])


@given(st.integers(-2048, 2047), st.integers(0, 15))
@settings(max_examples=30, deadline=None)
def test_signed_twelve_bits_whatever_the_unused_bits_hold(tmp_path_factory, value, unused):
    word = (value & 0xFFF) | unused << 12
    stored = np.array([[word, 0], [1, 2]], np.uint16)
    file = dicom(tmp_path_factory.mktemp("signed") / "a.dcm", stored, signed=True, RescaleSlope=1, RescaleIntercept=0)
    assert load_scan(file).values[0].tolist() == [[value, 0], [1, 2]]


def test_without_a_window(tmp_path):
    "8 bits as they are; more between percentiles."
    bytes_ = np.arange(256, dtype=np.uint8).reshape(16, 16) // 2
    np.testing.assert_allclose(load_scan(dicom(tmp_path / "8.dcm", bytes_, bits=8))[0], bytes_ / 255, atol=1e-7)
    low, high = np.percentile(RAMP, [1, 99])
    np.testing.assert_allclose(load_scan(dicom(tmp_path / "12.dcm", RAMP))[0], np.interp(RAMP, [low, high], [0, 1]), atol=1e-5)
    assert not load_scan(dicom(tmp_path / "flat.dcm", RAMP * 0)).pixels.any()


def test_frames_with_windows_of_their_own(tmp_path):
    "Enhanced files: slope for all frames, a window for each."
    shared = dataset(PixelValueTransformationSequence=[dataset(RescaleSlope=2, RescaleIntercept=-100)])
    each = [dataset(FrameVOILUTSequence=[dataset(WindowCenter=c, WindowWidth=w)]) for c, w in ((0, 101), (500, 1001))]
    groups = dict(SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=each)
    file = dicom(tmp_path / "a.dcm", np.stack([RAMP, RAMP // 2]), NumberOfFrames=2, SOPClassUID=uid.EnhancedCTImageStorage, **groups)
    scan = load_scan(file)
    np.testing.assert_array_equal(scan.values, np.stack([RAMP, RAMP // 2]) * 2.0 - 100)
    for gray, values, (center, width) in zip(scan, scan.values, ((0, 101), (500, 1001))):
        np.testing.assert_allclose(gray, np.interp(values, [center - width / 2, center - 1 + width / 2], [0, 1]), atol=1e-6)
    assert list_slices(file) == [f"{file}#0", f"{file}#1"]
    np.testing.assert_array_equal(read_slice(f"{file}#1"), scan[1])


def test_colors(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    palette = {f"{c}PaletteColorLookupTable{part}": v for c in ("Red", "Green", "Blue") for part, v in (("Descriptor", [256, 0, 16]),)}
    for i, c in enumerate(("Red", "Green", "Blue")):
        palette[f"{c}PaletteColorLookupTableData"] = (np.arange(256, dtype=np.uint16) * (i + 1) * 64).tobytes()
    plain = load_scan(dicom(tmp_path / "rgb.dcm", rgb, 8, samples=3, PhotometricInterpretation="RGB"))
    np.testing.assert_allclose(plain[0], rgb / 255, atol=1e-6)
    np.testing.assert_allclose(
        load_scan(dicom(tmp_path / "ybr.dcm", ycbcr, 8, samples=3, PhotometricInterpretation="YBR_FULL"))[0], rgb / 255, atol=4 / 255
    )
    index = rgb[..., 0]
    looked_up = load_scan(dicom(tmp_path / "p.dcm", index, 8, PhotometricInterpretation="PALETTE COLOR", **palette))[0]
    np.testing.assert_allclose(looked_up[..., 2], index.astype(int) * 3 * 64 / 65535, atol=1e-5)
    with pytest.raises(ValueError, match="window: .*rgb.dcm' is in color"):
        load_scan(tmp_path / "rgb.dcm", window=(1, 2))


def test_compressed_files(tmp_path):
    data = pydicom.dcmread(dicom(tmp_path / "a.dcm", RAMP, WindowCenter=40, WindowWidth=400))
    data.compress(uid.RLELossless)
    data.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(load_scan(tmp_path / "rle.dcm").pixels, load_scan(tmp_path / "a.dcm").pixels)
    stream = io.BytesIO()
    smooth = (RAMP // 16).astype(np.uint8)
    Image.fromarray(smooth).save(stream, "JPEG", quality=95)
    frame = pydicom.encaps.encapsulate([stream.getvalue()])
    jpeg = dicom(tmp_path / "jpeg.dcm", smooth, 8, syntax=uid.JPEGBaseline8Bit, PixelData=frame)
    np.testing.assert_allclose(load_scan(jpeg)[0], smooth / 255, atol=0.03)


def test_compression_without_a_decoder(tmp_path, monkeypatch):
    "What a machine lacks is named; decoders that this one has are taken away."
    decoder = pydicom.pixels.get_decoder(uid.JPEGLosslessSV1)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    frame = pydicom.encaps.encapsulate([b"no picture"])
    file = dicom(tmp_path / "a.dcm", RAMP, syntax=uid.JPEGLosslessSV1, PixelData=frame)
    with pytest.raises(ValueError, match=r"compressed as 'JPEG Lossless.*pip install 'pylibjpeg\[all\]'"):
        load_scan(file)


def test_old_files_without_a_header(tmp_path):
    file = dicom(tmp_path / "a.dcm", RAMP, syntax=uid.ImplicitVRLittleEndian, WindowCenter=40, WindowWidth=400)
    content = file.read_bytes()
    length = struct.unpack("<I", content[140:144])[0]  # of group 0002, which begins after 128 bytes, the mark, and this element
    (tmp_path / "old.dcm").write_bytes(content[144 + length :])
    np.testing.assert_array_equal(load_scan(tmp_path / "old.dcm").pixels, load_scan(file).pixels)


def write_series(folder, order, cosines, first, step, **elements):
    folder.mkdir()
    for name, i in enumerate(order):
        position = [float(one) for one in np.array(first) + i * np.array(step)]
        plane = dict(ImagePositionPatient=position, ImageOrientationPatient=list(cosines), PixelSpacing=[2.0, 0.5])
        stored = np.full((6, 8), i, np.uint16)
        stored[1, 5] = 100 + i
        dicom(folder / f"{name}.dcm", stored, SeriesInstanceUID="1.2.3", InstanceNumber=name, **plane, **elements)
    return folder


@pytest.mark.parametrize(
    "cosines, step",
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 3)),  # axial
        ((0, 1, 0, 0, 0, -1), (-2, 0, 0)),  # sagittal
        ((0.8, 0.6, 0, 0, 0, -1), (-1.2, 1.6, 0)),  # oblique
    ],
)
def test_series_in_order_and_on_a_grid(tmp_path, cosines, step):
    "Any order of files; the grid says where a voxel is, in millimeters of NIfTI (right, anterior, superior)."
    first = np.array([10.0, -20.0, 30.0])
    scan = load_scan(write_series(tmp_path / "s", [3, 0, 2, 1], cosines, first, step), window=(50, 200))
    assert scan.values[:, 0, 0].tolist() == [0, 1, 2, 3]
    maps = np.zeros((4, 6, 8), np.float32)
    maps[2, 1, 5] = 1
    written = nib.load(save_nifti(tmp_path / "map.nii.gz", maps, scan))
    place = written.affine @ [*np.argwhere(np.asarray(written.dataobj) == 1)[0], 1]
    along, down = np.array(cosines[:3], float), np.array(cosines[3:], float)
    expected = first + 2 * np.array(step) + 5 * 0.5 * along + 1 * 2.0 * down  # C.7.6.2.1.1: columns are 0.5 mm apart, rows 2 mm
    np.testing.assert_allclose(place[:3], expected * [-1, -1, 1], atol=1e-5)


def test_series_by_number_where_positions_are_missing(tmp_path):
    for name, number in (("a", 3), ("b", 1), ("c", 2)):
        dicom(tmp_path / name, np.full((4, 4), number, np.uint16), InstanceNumber=number)
    (tmp_path / "notes.txt").write_text("not a slice")
    scan = load_scan(tmp_path)
    assert scan.values[:, 0, 0].tolist() == [1, 2, 3] and scan.space is None
    with pytest.raises(ValueError, match="scan: .* does not say where its voxels are"):
        save_nifti(tmp_path / "map.nii", scan.values, scan)


def test_series_with_a_gap_has_no_grid_and_sizes_must_agree(tmp_path):
    folder = write_series(tmp_path / "s", [0, 1, 2, 5], (1, 0, 0, 0, 1, 0), (0, 0, 0), (0, 0, 3))
    assert load_scan(folder).space is None
    dicom(folder / "scout.dcm", RAMP, SeriesInstanceUID="1.2.3")
    with pytest.raises(ValueError, match="have several sizes, 6 x 8, 64 x 64"):
        load_scan(folder)
    dicom(folder / "other.dcm", RAMP, SeriesInstanceUID="9.9", SeriesDescription="Lung 1.0", Modality="CT")
    with pytest.raises(ValueError, match=r"holds 2 series: 5 of '1.2.3' \(CT Image\), 1 of 'Lung 1.0' \(CT\)"):
        load_scan(folder)


AFFINES = {
    "RAS": np.diag([2.0, 3.0, 4.0, 1.0]),
    "LPS": np.diag([-2.0, -3.0, 4.0, 1.0]),
    "turned": np.array([[0, 0, 2, -9], [-3, 0, 0, 8], [0, 4, 0, 7], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.3, -2.9, 0.4, 40], [2, 0.3, -0.2, -30], [0.2, 0.4, -5, 60], [0, 0, 0, 1.0]]),
}
# for each axis: what grows along slices, along rows (downwards) and along columns (to the right), in right, anterior, superior
GROWS = {"axial": [(2, 1), (1, -1), (0, -1)], "coronal": [(1, 1), (2, -1), (0, -1)], "sagittal": [(0, 1), (2, -1), (1, -1)]}


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", AFFINES)
def test_slices_lie_as_radiologists_show_them(tmp_path, name, axis):
    "Each voxel's place in millimeters is its value, so the direction in which a picture grows can be read from it."
    shape = (5, 6, 7)
    index = np.stack([*np.indices(shape), np.ones(shape)])
    for world in range(3):
        place = np.einsum("i,i...->...", AFFINES[name][world], index).astype(np.float32)
        nib.save(nib.Nifti1Image(place, AFFINES[name]), tmp_path / "v.nii")
        values = load_scan(tmp_path / "v.nii", axis=axis).values
        for direction, (grows, sign) in enumerate(GROWS[axis]):
            if grows == world:
                assert (np.sign(np.diff(values, axis=direction)) == sign).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", AFFINES)
def test_maps_lie_where_the_volume_has_them(tmp_path, name, axis):
    "A blob: the center of mass of the written map, in millimeters, is that of the blob in the volume."
    blob = np.zeros((8, 12, 16), np.float32)
    blob[4:6, 2:4, 10:12] = 1
    nib.save(nib.Nifti1Image(blob, AFFINES[name]), tmp_path / "v.nii.gz")
    scan = load_scan(tmp_path / "v.nii.gz", axis=axis)
    maps = scan.values.reshape(len(scan), scan.values.shape[1] // 2, 2, -1, 2).max((2, 4))  # patches of 2 x 2
    written = nib.load(save_nifti(tmp_path / "m.nii.gz", maps, scan))
    center = lambda image: nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0).mean(0))
    np.testing.assert_allclose(center(written), center(nib.load(tmp_path / "v.nii.gz")), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), blob)


def test_written_maps_keep_the_header_and_not_its_scaling(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINES["oblique"])
    image.set_sform(AFFINES["oblique"], code="mni")
    image.set_qform(None, code="unknown")
    image.header.set_xyzt_units("mm", "sec")
    image.header["cal_max"], image.header["descrip"] = 80, b"a scan"
    image.header.set_slope_inter(2, 7)
    nib.save(image, tmp_path / "v.nii")
    scan = load_scan(tmp_path / "v.nii", window=(60, 100))
    np.testing.assert_allclose(np.sort(scan.values.ravel()), np.sort(nib.load(tmp_path / "v.nii").get_fdata().ravel()), rtol=1e-6)
    written = nib.load(save_nifti(tmp_path / "m.nii", np.full((5, 2, 3), 0.25), scan))
    header = written.header
    assert (written.get_fdata() == 0.25).all() and header.get_data_dtype() == np.float32 and header["cal_max"] == 0
    assert header.get_xyzt_units() == ("mm", "sec") and header.get_sform(coded=True)[1] == 4 and header["descrip"] == b"a scan"
    np.testing.assert_allclose(written.affine, AFFINES["oblique"], rtol=1e-6)


def test_volumes_with_time_nan_and_two_axes(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    values[0, 0, 0, 1] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "t.nii.gz")
    scan = load_scan(tmp_path / "t.nii.gz", volume=1)
    expected = values[..., 1][::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(scan.values, np.nan_to_num(expected, nan=np.nanmin(expected)))
    assert nib.load(save_nifti(tmp_path / "m.nii", scan.values, scan)).shape == (4, 5, 6)
    assert list_slices(tmp_path / "t.nii.gz") == [str(tmp_path / "t.nii.gz")]  # a volume must be chosen first
    nib.save(nib.Nifti1Image(values[:, :, 0, 0], np.eye(4)), tmp_path / "flat.nii")
    flat = load_scan(tmp_path / "flat.nii")
    assert flat.pixels.shape == (1, 5, 4) and read_slice(tmp_path / "flat.nii").shape == (5, 4)
    assert nib.load(save_nifti(tmp_path / "m.nii", flat.values, flat)).shape[:2] == (4, 5)


def faults(folder):
    "What cannot be read, and what is said of it."
    good = dicom(folder / "good.dcm", RAMP).read_bytes()
    (folder / "text.dcm").write_text("a report")
    (folder / "empty.dcm").touch()
    Image.new("RGB", (9, 9)).save(folder / "photo.dcm", "JPEG")
    (folder / "half.dcm").write_bytes(good[:-100])
    (folder / "head.dcm").write_bytes(good[:140])
    (folder / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(3000))
    structures = pydicom.dcmread(folder / "good.dcm")
    structures.SOPClassUID = uid.RTStructureSetStorage
    del structures.PixelData
    structures.save_as(folder / "rt.dcm")
    dicom(folder / "seg.dcm", RAMP, SOPClassUID=uid.SegmentationStorage)
    (folder / "text.nii").write_text("a report")
    (folder / "empty.nii.gz").touch()
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 2), np.float32), np.eye(4)), folder / "time.nii.gz")
    content = (folder / "time.nii.gz").read_bytes()
    (folder / "zipped.nii").write_bytes(content)
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 20, 20)), np.eye(4)), folder / "whole.nii.gz")
    (folder / "half.nii.gz").write_bytes((folder / "whole.nii.gz").read_bytes()[:20000])
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), np.nan), np.eye(4)), folder / "nan.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), [(c, "u1") for c in "RGB"]), np.eye(4)), folder / "colors.nii")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 1, 3)), np.eye(4)), folder / "five.nii")
    return {
        "text.dcm": "is a text file", "empty.dcm": "is empty", "photo.dcm": r"is a picture \(JPEG\)", "half.dcm": "damaged, cut short",
        "head.dcm": "damaged|without pixels|not a DICOM", "noise.dcm": "is an unknown kind of file", "rt.dcm": r"without pixels \(RT Structure Set\)",
        "seg.dcm": r"holds labels, not an image \(Segmentation\)", "text.nii": "is a text file", "empty.nii.gz": "is empty",
        "time.nii.gz": "holds 2 volumes; choose one", "zipped.nii": "compressed by gzip.*nii.gz", "half.nii.gz": "damaged or cut short",
        "nan.nii": "no finite value", "colors.nii": "colors or complex", "five.nii": "has the shape",
    }  # fmt: skip


def test_what_cannot_be_read_says_what_it_is(tmp_path, vit):
    for name, why in faults(tmp_path).items():
        with pytest.raises(ValueError, match=why) as caught:
            load_scan(tmp_path / name)
        assert str(caught.value).startswith("image: ") and name in str(caught.value)
        with pytest.raises(ValueError, match=why):
            load_image(tmp_path / name, vit)
        header_is_fine = name in ("half.nii.gz", "nan.nii")
        assert (list_slices(tmp_path / name) == [str(tmp_path / name)]) != header_is_fine
    for name in ("nowhere.dcm", "nowhere.nii"):
        with pytest.raises(FileNotFoundError, match="image: there is no file"):
            load_scan(tmp_path / name)
    with pytest.raises(ValueError, match="axis: belongs to NIfTI"):
        load_scan(tmp_path / "good.dcm", axis="coronal")
    with pytest.raises(ValueError, match="did you mean 'axial'"):
        load_scan(tmp_path / "whole.nii.gz", axis="axal")


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    file = dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r"pip install 'attnbootreg\[medical\]'"):
        load_scan(file)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    "A folder with DICOM slices, one without an ending, a volume, and a file that is none."
    root, random = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    (root / "patient").mkdir()
    for name in ("1.dcm", "IM0002"):
        dicom(root / "patient" / name, random.integers(0, 4096, (40, 50)).astype(np.uint16), WindowCenter=2000, WindowWidth=3000)
    nib.save(nib.Nifti1Image(random.normal(size=(30, 40, 2)).astype(np.float32), np.eye(4)), root / "volume.nii.gz")
    (root / "patient" / "report.txt").write_text("no picture")
    (root / "damaged.dcm").write_text("no picture")
    return root


def test_scans_are_paths_like_others(scans, vit):
    assert is_scan(scans / "patient" / "IM0002") and not is_scan(scans / "patient" / "report.txt")
    for path in (scans / "patient" / "IM0002", f"{scans}/volume.nii.gz#1"):
        np.testing.assert_array_equal(load_image(path, vit), load_image(read_slice(path), vit))
    whole = load_scan(scans / "volume.nii.gz")
    results = regularize(whole, vit, recipe="released", seed=0, progress=False)
    alone = regularize(f"{scans}/volume.nii.gz#0", vit, recipe="released", seed=0, progress=False)
    np.testing.assert_array_equal(results[0].maps["p"], alone.maps["p"])
    assert len(results) == 2 and alone.settings["image"].endswith("volume.nii.gz#0")


def test_a_slice_is_known_by_its_content(scans, tmp_path):
    "The seed of an image in a study depends on what is in it, not on its name or its window."
    copy = tmp_path / "other name.nii.gz"
    copy.write_bytes((scans / "volume.nii.gz").read_bytes())
    one = slice_bytes(f"{scans}/volume.nii.gz#0")
    assert one == slice_bytes(f"{copy}#0", (0, 1)) != slice_bytes(f"{copy}#1")


def test_study_of_a_folder_of_scans(scans, tmp_path, vit):
    names = ["damaged.dcm", "patient/1.dcm", "patient/IM0002", "volume.nii.gz#0", "volume.nii.gz#1"]
    assert [source.name for source in list_sources(scans)] == names
    assert [source.category for source in list_sources(scans)][1:3] == ["patient"] * 2
    run_study(scans, vit, tmp_path / "study", Study(null=1, recipe="released"), progress=False)
    rows = load_study(tmp_path / "study")
    assert sorted(rows["image"]) == names and rows["error"].notna().sum() == 1
    assert "is a text file" in rows[rows["error"].notna()]["error"].iloc[0]
    with pytest.raises(ValueError, match=r"window is None there and \[40.0, 400.0\] here"):
        run_study(scans, vit, tmp_path / "study", Study(null=1, recipe="released", window=(40, 400)), progress=False)
    with pytest.raises(ValueError, match="window: must be a number above 0"):
        Study(window=(40, 0))
    assert repr(Study(window=(40, 400))) == "Study(window=(40.0, 400.0))"


def test_command_line(scans, tmp_path):
    images = [f"{scans}/volume.nii.gz#1", f"{scans}/patient/1.dcm", f"{scans}/damaged.dcm"]
    how = ["--recipe", "released", "--seed", "0", "--window", "-10,3000", "--json"]
    done = CliRunner().invoke(app, ["regularize", *images, "--out", str(tmp_path), *how])
    assert done.exit_code == 1 and "is a text file" in done.stderr
    cards = [json.loads(line) for line in done.stdout.splitlines()]
    assert [card["image"] for card in cards] == images[:2]
    assert (tmp_path / "volume-1.png").exists() and (tmp_path / "1.json").exists()
    wrong = CliRunner().invoke(app, ["regularize", images[1], "--out", str(tmp_path), "--window", "40"])
    assert wrong.exit_code == 2 and "--window: '40' is not CENTER,WIDTH" in wrong.stderr
