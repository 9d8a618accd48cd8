"""Every format gives back the picture that was written, and damaged files are named."""

from __future__ import annotations

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from dusss_core.errors import UserError
from dusss_core.readers import parse_reference, read_image, read_mask
from tests.sites.builders import mask, picture, save


def write_dicom(path, pixels: np.ndarray, **tags):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_pictures_come_back_exactly(tmp_path, suffix, channels):
    pixels = picture(1, channels=channels)
    path = save(tmp_path / f"a.{suffix}", pixels, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path, channels)
    assert image.dtype == np.float32
    assert image.shape == (channels, 48, 40)
    expected = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected / 255, atol=1e-6)


def test_jpeg_is_read_upright(tmp_path):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[:, :30] = 255
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to see it upright
    image = read_image(save(tmp_path / "a.jpg", pixels, exif=exif, quality=95), 1)
    assert image.shape == (1, 60, 40)
    assert image[0, :25].mean() > 0.95
    assert image[0, 35:].mean() < 0.05


def test_gray_and_colour_are_converted(tmp_path):
    gray = read_image(save(tmp_path / "g.png", picture(1)), 3)
    assert np.array_equal(gray[0], gray[2])
    colour = picture(2, channels=3)
    luma = read_image(save(tmp_path / "c.png", colour), 1)
    np.testing.assert_allclose(luma[0], colour @ np.array([0.299, 0.587, 0.114]) / 255, atol=1e-5)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("highest", "white"), [(65000, 65535), (4000, 4095), (900, 1023)])
def test_16_bit_pictures_use_the_depth_that_holds_them(tmp_path, suffix, highest, white):
    pixels = np.linspace(0, highest, 48 * 40).astype(np.uint16).reshape(48, 40)
    image = read_image(save(tmp_path / f"a.{suffix}", pixels), 1)
    np.testing.assert_allclose(image[0], pixels / white, atol=1e-5)


@pytest.mark.parametrize(("kind", "full"), [(np.uint16, 65535), (np.uint16, 4095), (np.float32, 1)])
def test_a_tiff_that_says_that_0_is_white_looks_as_one_that_says_that_0_is_black(tmp_path, kind, full):
    shown = (np.linspace(0, 1, 48 * 40).reshape(48, 40) * full).astype(kind)
    plain = read_image(save(tmp_path / "a.tif", shown), 1)
    negative = read_image(save(tmp_path / "b.tif", full - shown, tiffinfo={262: 0}), 1)
    np.testing.assert_allclose(negative, plain, atol=1e-6)


def test_a_deep_mask_in_a_tiff_that_says_that_0_is_white_marks_what_is_white(tmp_path):
    stored = 65535 - mask(1).astype(np.uint16) * 257
    assert np.array_equal(read_mask(save(tmp_path / "a.tif", stored, tiffinfo={262: 0})), mask(1) > 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_as_it_says_whether_or_not_it_is_compressed(tmp_path, orientation, compression):
    pixels = picture(4, 40, 60)
    path = save(tmp_path / "a.tif", pixels, tiffinfo={274: orientation}, compression=compression)
    upright = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    upright |= {5: pixels.T, 6: pixels[::-1].T, 7: pixels[::-1, ::-1].T, 8: pixels[:, ::-1].T}
    np.testing.assert_allclose(read_image(path, 1)[0], upright[orientation] / 255, atol=1e-6)


def test_pages_of_a_tiff_are_named(tmp_path):
    pages = [Image.fromarray(picture(i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(read_image(f"{tmp_path}/a.tif#2", 1)[0], picture(2) / 255, atol=1e-6)
    with pytest.raises(UserError, match="3 pages"):
        read_image(f"{tmp_path}/a.tif#3", 1)


def test_dicom_window_and_rescale(tmp_path):
    stored = np.arange(48 * 40).reshape(48, 40)
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=[0.5, 40],
        WindowWidth=[1001, 80],
    )
    image = read_image(path, 1)[0]
    np.testing.assert_allclose(image, np.clip((stored * 2.0 - 1000 + 500) / 1000, 0, 1), atol=1e-5)


def test_dicom_without_a_window_uses_its_percentiles(tmp_path):
    stored = np.full((100, 100), 500)
    stored[:50] = 1000
    stored[0, 0] = 60000  # a burnt-in marker must not darken the rest
    image = read_image(write_dicom(tmp_path / "a.dcm", stored), 1)[0]
    assert image[10, 10] == 1
    assert image[90, 90] == 0


def test_monochrome1_is_inverted(tmp_path):
    stored = picture(3).astype(np.uint16)
    plain = read_image(write_dicom(tmp_path / "a.dcm", stored), 1)
    inverted = read_image(write_dicom(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1"), 1)
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-5)


def test_frames_of_a_dicom_are_named(tmp_path):
    frames = np.stack([picture(i) for i in range(3)])
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=3, WindowCenter=127.5 + 0.5, WindowWidth=256)
    np.testing.assert_allclose(read_image(f"{path}#1", 1)[0], frames[1] / 255, atol=1e-2)
    with pytest.raises(UserError, match=r"3 frames\n  -> name one: a.dcm#1"):
        read_image(path, 1)


def _group(rescale=None, window=None) -> Dataset:
    """An item of functional groups: (slope, intercept), and (centre, width)."""
    groups = Dataset()
    if rescale:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept = rescale
        groups.PixelValueTransformationSequence = [item]
    if window:
        item = Dataset()
        item.WindowCenter, item.WindowWidth = window
        groups.FrameVOILUTSequence = [item]
    return groups


@pytest.mark.parametrize(
    ("shared", "own"),
    [
        (_group((2, -1000), (0, 1000)), [_group(), _group()]),
        (_group((2, -1000)), [_group(window=(40, 80)), _group(window=([-600, 40], [1500, 80]))]),
        (_group((9, 9), (9, 9)), [_group((1, -24), (40, 400)), _group((3, -2000), (300, 2000))]),
        (Dataset(), [_group((1, -24), (40, 400)), _group((3, -2000), (300, 2000))]),
    ],
    ids=["shared", "own window", "own before shared", "own"],
)
def test_each_frame_of_an_enhanced_dicom_has_the_rescale_and_window_that_its_groups_name(tmp_path, shared, own):
    frames = np.arange(2 * 48 * 40).reshape(2, 48, 40) % 2000
    groups = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": own}
    path = write_dicom(tmp_path / "a.dcm", frames, NumberOfFrames=2, **groups)
    for number in range(2):
        rescale, window = (
            next(groups[name][0] for groups in (own[number], shared) if name in groups)
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence")
        )
        tags = {name: rescale[name].value for name in ("RescaleSlope", "RescaleIntercept")}
        tags |= {name: window[name].value for name in ("WindowCenter", "WindowWidth")}
        classic = write_dicom(tmp_path / "b.dcm", frames[number], **tags)
        np.testing.assert_array_equal(read_image(f"{path}#{number}", 1), read_image(classic, 1))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_slices_of_a_volume_do_not_depend_on_its_orientation(tmp_path, suffix):
    volume = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    canonical = nibabel.Nifti1Image(volume, np.eye(4))
    nibabel.save(canonical, tmp_path / f"a.{suffix}")
    orientation = nibabel.orientations.axcodes2ornt("PIL")
    turned = canonical.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), orientation)
    )
    nibabel.save(turned, tmp_path / f"b.{suffix}")
    for part, plane in (
        ("x=2", volume[2]),
        ("y=3", volume[:, 3]),
        ("z=4", volume[:, :, 4]),
        ("4", volume[:, :, 4]),
    ):
        low, high = np.percentile(plane, (0.5, 99.5))
        expected = np.clip((plane.T[::-1, ::-1] - low) / (high - low), 0, 1)
        np.testing.assert_allclose(read_image(f"{tmp_path}/a.{suffix}#{part}", 1)[0], expected, atol=1e-5)
        np.testing.assert_allclose(read_image(f"{tmp_path}/b.{suffix}#{part}", 1)[0], expected, atol=1e-5)


def test_a_volume_needs_a_slice_that_exists(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"6 slices along z\n  -> name one: a.nii#z=3"):
        read_image(tmp_path / "a.nii", 1)
    with pytest.raises(UserError, match="6 slices, counted from 0"):
        read_image(f"{tmp_path}/a.nii#z=6", 1)


def test_a_volume_of_one_slice_needs_no_number(tmp_path):
    values = (np.arange(20).reshape(4, 5) % 2).astype(np.uint8)
    for shape in ((4, 5), (4, 5, 1), (4, 5, 1, 1)):
        nibabel.save(nibabel.Nifti1Image(values.reshape(shape), np.eye(4)), tmp_path / "a.nii.gz")
        assert np.array_equal(read_mask(tmp_path / "a.nii.gz"), values.T[::-1, ::-1])


def test_hash_signs_in_names_are_no_slices():
    assert str(parse_reference("a#3.png").file) == "a#3.png"
    assert parse_reference("case#1/ct.nii.gz#y=7").index == 7


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], [0, 1]),
        ([0, 1], [0, 1]),
        ([0, 0], [0, 0]),
        ([255, 255], [1, 1]),
        ([0, 1, 2, 7], [0, 1, 2, 7]),
        ([0, 1, 255], [0, 1, 255]),
        (list(range(256)), [0] * 128 + [1] * 128),
        (list(range(0, 256, 5)), [0] * 26 + [1] * 26),
        (list(range(0, 200, 4)), [0] * 32 + [1] * 18),  # a soft finding that is nowhere white
        (list(range(61)), list(range(61))),
        (list(range(1, 201)), list(range(1, 201))),
        (list(range(255)), list(range(255))),
        (list(range(0, 120, 3)), list(range(0, 120, 3))),  # 40 of 118 classes
    ],
)
def test_gray_values_become_classes(tmp_path, values, expected):
    path = save(tmp_path / "m.png", np.array([values] * 2, np.uint8))
    assert read_mask(path).tolist() == [expected] * 2


def test_more_nuclei_than_there_are_classes_are_refused_and_no_empty_mask(tmp_path):
    path = save(tmp_path / "m.png", np.arange(700, dtype=np.uint16).reshape(20, 35))
    with pytest.raises(UserError, match="it holds the value 699, and class indices end at 255"):
        read_mask(path)


@pytest.mark.parametrize(
    "numbers",
    [[*range(1, 77), *range(78, 151)], list(range(3, 200, 3)), list(range(1, 256)), list(range(200, 250))],
)
@pytest.mark.parametrize("across", [5, 9])
def test_nuclei_that_are_numbered_with_gaps_are_all_in_the_mask(tmp_path, numbers, across):
    inside = np.hypot(*(np.mgrid[:across, :across] - across // 2)) <= across / 2
    rows = -(-len(numbers) // 12)
    places = np.zeros(rows * 12, np.uint8)
    places[: len(numbers)] = numbers
    # the squares of discs touch, their discs by a pixel
    values = np.kron(places.reshape(rows, 12), inside.astype(np.uint8))
    path = save(tmp_path / "m.png", np.pad(values, 3))
    assert np.array_equal(read_mask(path), np.pad(values, 3))
    deep = save(tmp_path / "deep.png", values.astype(np.uint16) * 4)
    if max(numbers) * 4 > 255:
        with pytest.raises(UserError, match=f"it holds the value {max(numbers) * 4}, and class indices end at 255"):
            read_mask(deep)


@pytest.mark.parametrize("width", [2, 5, 10, 40])
def test_a_border_of_any_width_is_cut_at_one_half(tmp_path, width):
    away = 80 - np.hypot(*(np.mgrid[:240, :240] - 120))
    soft = np.rint(255 / (1 + np.exp(-away / width))).astype(np.uint8)
    assert np.array_equal(read_mask(save(tmp_path / "m.png", soft)), soft > 127)
    if width == 2:
        coarse = np.kron(soft, np.ones((8, 8), np.uint8))  # scaled up by the nearest pixel
        assert np.array_equal(read_mask(save(tmp_path / "m.png", coarse)), coarse > 127)


def test_classes_of_a_volume_are_no_gray_picture(tmp_path):
    values = np.arange(40, dtype=np.uint8).reshape(5, 8) * 3
    nibabel.Nifti1Image(values[:, :, None], np.diag([1, 1, 1, 1])).to_filename(tmp_path / "a.nii.gz")
    assert np.array_equal(np.unique(read_mask(tmp_path / "a.nii.gz")), np.unique(values))


def test_a_soft_border_is_cut_at_one_half_in_every_format(tmp_path):
    shades = np.tile(np.linspace(0, 255, 60).round().astype(np.uint8), (8, 1))
    for name, pixels in (("a.png", shades), ("a.jpg", shades), ("deep.png", shades.astype(np.uint16) * 257)):
        found = read_mask(save(tmp_path / name, pixels))
        assert found[:, [0, 10, 25, 34, 50]].tolist() == [[0, 0, 0, 1, 1]] * 8, name


def test_masks_of_every_kind_become_classes(tmp_path):
    square = mask(0) > 0
    saved = {
        "1bit.png": Image.fromarray(square),
        "16bit.png": Image.fromarray(square.astype(np.uint16) * 65535),
        "colour.png": Image.fromarray(np.stack([square * 255, square * 20, square * 0], 2).astype(np.uint8)),
        "gray_rgb.png": Image.fromarray(np.stack([mask(0)] * 3, 2)),
        "lossy.jpg": Image.fromarray(mask(0)),
        "alpha.png": Image.fromarray(np.stack([mask(0), np.full((48, 40), 255, np.uint8)], 2)),
    }
    for name, file in saved.items():
        file.save(tmp_path / name)
        assert np.array_equal(read_mask(tmp_path / name), square), name


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_in_the_alpha_channel_alone_is_refused_and_not_read_as_all_foreground(tmp_path, mode, colour):
    path, drawn = tmp_path / "mask.png", Image.new(mode, (40, 48), (colour,) * len(mode))
    drawn.putalpha(Image.fromarray(mask(0)))
    drawn.save(path)
    with pytest.raises(UserError, match="alpha channel"):
        read_mask(path)
    assert read_image(path, 1).shape == (1, 48, 40)
    drawn.putalpha(255)
    drawn.save(path)
    assert set(np.unique(read_mask(path))) == {min(colour, 1)}


def test_the_index_of_a_palette_is_the_class(tmp_path):
    classes = (np.arange(48 * 40).reshape(48, 40) % 3).astype(np.uint8)
    file = Image.fromarray(classes)
    file.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    file.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), classes)


def test_a_black_and_white_palette_is_read_by_colour(tmp_path):
    file = Image.fromarray((mask(0) == 0).astype(np.uint8))
    file.putpalette([255, 255, 255, 0, 0, 0])
    file.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), mask(0) > 0)


def test_the_first_colour_of_a_palette_is_no_background_where_another_is_black(tmp_path):
    square = mask(0) > 0
    file = Image.fromarray(np.stack([square * 255, square * 0, square * 0], 2).astype(np.uint8)).quantize(2)
    assert file.getpalette()[:3] == [255, 0, 0]
    file.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), square)
    several = Image.fromarray(square + np.eye(48, 40, dtype=np.uint8))
    several.putpalette([0, 0, 255, 0, 0, 0, 0, 255, 0])
    several.save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m.png: not a mask: it has 3 colours"):
        read_mask(tmp_path / "m.png")


def test_a_class_may_be_black_in_a_palette_that_begins_with_black(tmp_path):
    classes = (np.arange(48 * 40).reshape(48, 40) % 3).astype(np.uint8) * 2
    file = Image.fromarray(classes)
    file.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0, 0, 0] * 5)
    file.save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), classes)


def test_colours_without_a_known_class_are_refused(tmp_path):
    values = np.zeros((8, 8, 3), np.uint8)
    values[0, 0], values[1, 1] = (255, 0, 0), (0, 255, 0)
    with pytest.raises(UserError, match=r"m.png: not a mask: it has 3 colours"):
        read_mask(save(tmp_path / "m.png", values))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.dcm", "a.nii", "a.nii.gz"])
def test_files_that_are_something_else_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"this is not a picture" * 20)
    with pytest.raises(UserError, match=name):
        read_image(tmp_path / name, 1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.dcm"])
def test_truncated_files_are_named(tmp_path, name):
    path = tmp_path / name
    if name == "a.dcm":
        write_dicom(path, picture(1, 200, 200))
    else:
        save(path, picture(1, 200, 200))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"{name}: "):
        read_image(path, 1)


def test_an_unknown_format_names_the_known_ones(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"no reader for '.gif'.*\n.*\.png"):
        read_image(tmp_path / "a.gif", 1)


def test_a_picture_of_one_value_is_black_not_nan(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.full((4, 5, 1), 7.0), np.eye(4)), tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii", 3).tolist() == np.zeros((3, 5, 4)).tolist()


@pytest.mark.parametrize("ends", [[np.inf], [-np.inf], [np.inf, -np.inf, np.nan]])
@pytest.mark.parametrize("high", [1.0, 900.0])
def test_infinite_values_in_a_picture_do_not_turn_the_others_black(tmp_path, ends, high):
    pixels = np.linspace(0, high, 40 * 40, dtype=np.float32).reshape(40, 40)
    broken = pixels.copy()
    broken[0] = np.resize(ends, 40)  # a hundredth and more lies beyond the percentiles
    Image.fromarray(broken).save(tmp_path / "a.tif")
    nibabel.save(nibabel.Nifti1Image(broken[..., None], np.diag([-1, -1, 1, 1])), tmp_path / "a.nii.gz")
    for name in ("a.tif", "a.nii.gz"):
        image = read_image(tmp_path / name, 1)
        assert np.isfinite(image).all()
        assert 0.45 < np.median(image) < 0.55, name


def test_a_picture_of_infinite_values_alone_is_black(tmp_path):
    Image.fromarray(np.full((8, 8), np.inf, np.float32)).save(tmp_path / "a.tif")
    assert not read_image(tmp_path / "a.tif", 1).any()
