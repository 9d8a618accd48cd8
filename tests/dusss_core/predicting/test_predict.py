"""`python -m dusss_core predict` reads every format, writes masks that lie as their pictures do, and can be resumed."""

from __future__ import annotations

import json

import highdicom
import nibabel
import numpy as np
import pydicom
import pydicom.fileset
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

import dusss_core
from dusss_core.__main__ import main
from dusss_core.predicting.inputs import find_jobs
from dusss_core.predicting.predict import JOURNAL
from dusss_core.readers import read_mask
from tests.sites.builders import picture, save

CT = "1.2.840.10008.5.1.4.1.1.2"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"
SERIES = "1.2.826.0.1.3680043.8.498.7"


def run(*arguments) -> int:
    return main([str(a) for a in arguments])


def masked(model, source) -> np.ndarray:
    return dusss_core.load(model, "cpu").predict(source).mask


def drawn(path, number=0):
    """A file of some kind: a volume, a TIFF of two pages, or a picture, each of a size of its own."""
    pixels = picture(number, 40 + 2 * number, 36)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.stack([pixels] * 3, 2).astype(np.int16), np.eye(4)), path)
    elif path.suffix == ".tif":
        Image.fromarray(pixels).save(path, save_all=True, append_images=[Image.fromarray(pixels)])
    else:
        save(path, pixels)
    return pixels.shape


def write_slice(path, pixels, number=1, *, sop=CT, **tags):
    """A CT slice at z = 3 mm times its number."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop
    meta.MediaStorageSOPInstanceUID = f"{SERIES}.1.{number}"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{SERIES}.2", f"{SERIES}.3"
    dataset.PatientID, dataset.Modality, dataset.InstanceNumber = "P1", "CT", number
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PhotometricInterpretation = 15, "MONOCHROME2"
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    if sop == CT:
        dataset.FrameOfReferenceUID = f"{SERIES}.4"
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 3.0 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.5], 3
    for name, value in tags.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp"])
def test_every_format_of_pictures_gets_a_mask_of_its_own_size(model, tmp_path, suffix):
    path = save(tmp_path / f"in/a.{suffix}", picture(1, 50, 40))
    assert run("predict", model, path, "--out", tmp_path / "out") == 0
    assert np.array_equal(read_mask(tmp_path / "out/a.png"), masked(model, path))
    assert set(np.unique(np.asarray(Image.open(tmp_path / "out/a.png")))) == {0, 255}


def test_16_bit_pictures_and_pages_are_read(model, tmp_path):
    deep = Image.fromarray(picture(1).astype(np.uint16) * 16)
    (tmp_path / "in").mkdir()
    deep.save(tmp_path / "in/deep.png")
    pages = [Image.fromarray(picture(i)) for i in (2, 3)]
    pages[0].save(tmp_path / "in/pages.tif", save_all=True, append_images=pages[1:])
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") == 0
    assert np.array_equal(read_mask(tmp_path / "out/deep.png"), masked(model, tmp_path / "in/deep.png"))
    for page in range(2):
        expected = masked(model, f"{tmp_path}/in/pages.tif#{page}")
        assert np.array_equal(read_mask(tmp_path / f"out/pages_{page:04d}.png"), expected)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_the_mask_of_a_volume_lies_as_the_volume_does(model, tmp_path, codes):
    draw = np.random.default_rng(0)
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    volume = nibabel.Nifti1Image(draw.integers(0, 900, (36, 40, 5)).astype(np.int16), affine)
    orientation = nibabel.orientations.axcodes2ornt(codes)
    turned = volume.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), orientation))
    path = tmp_path / f"{codes}.nii.gz"
    nibabel.save(turned, path)
    assert run("predict", model, path, "--out", tmp_path / "out", "--probabilities") == 0
    mask = nibabel.load(tmp_path / f"out/{codes}.nii.gz")
    assert mask.shape == turned.shape
    assert np.allclose(mask.affine, turned.affine)
    # seen along z, each slice of the mask is the mask of that slice
    for z in range(5):
        assert np.array_equal(read_mask(f"{tmp_path}/out/{codes}.nii.gz#z={z}"), masked(model, f"{path}#z={z}"))
    probabilities = np.asarray(nibabel.load(tmp_path / f"out/{codes}_probabilities.nii.gz").dataobj)
    assert np.array_equal(probabilities > 0.5, np.asarray(mask.dataobj) > 0)


@pytest.mark.parametrize("codes", [(1, 4), (1, 0), (0, 2), (0, 0)])
def test_the_mask_of_a_volume_lies_as_the_volume_does_for_a_viewer_that_reads_either_of_its_places(
    model, tmp_path, codes
):
    turned = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, -0.2, 0.5) * [2, 3, 4], [10, 20, -30])
    volume = nibabel.Nifti1Image(np.arange(36 * 40 * 3, dtype=np.int16).reshape(36, 40, 3), None)
    volume.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), codes[1])
    volume.set_qform(turned, codes[0])
    nibabel.save(volume, tmp_path / "a.nii.gz")
    assert run("predict", model, tmp_path / "a.nii.gz", "--out", tmp_path / "out", "--probabilities") == 0
    source = nibabel.load(tmp_path / "a.nii.gz")
    for name in ("a.nii.gz", "a_probabilities.nii.gz"):
        written = nibabel.load(tmp_path / "out" / name)
        assert np.array_equal(written.affine, source.affine)
        for form in ("get_qform", "get_sform"):
            (place, code), (expected, meant) = (getattr(one.header, form)(coded=True) for one in (written, source))
            assert code == meant
            assert code == 0 or np.array_equal(place, expected)


@pytest.mark.parametrize("shape", [(36, 40), (36, 40, 1), (36, 40, 3, 1)])
def test_the_mask_of_a_volume_has_its_dimensions(model, tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 900, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), tmp_path / "a.nii.gz")
    assert run("predict", model, tmp_path / "a.nii.gz", "--out", tmp_path / "out") == 0
    assert nibabel.load(tmp_path / "out/a.nii.gz").shape == shape


def test_a_dicom_series_gets_one_segmentation_that_refers_to_every_slice(model, tmp_path):
    for number in (3, 1, 2):  # the files' names are in another order than the slices
        write_slice(tmp_path / f"in/ct/{9 - number}.dcm", picture(number, 40, 36).astype(np.uint16) * 4, number)
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--code", "233604007^SCT^Pneumonia") == 0
    written = highdicom.seg.segread(tmp_path / "out/ct_seg.dcm")
    assert written.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert (written.PatientID, written.StudyInstanceUID) == ("P1", f"{SERIES}.2")
    assert written.FrameOfReferenceUID == f"{SERIES}.4"
    (segment,) = written.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    (code,) = segment.SegmentedPropertyTypeCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("233604007", "SCT", "Pneumonia")
    instances = [f"{SERIES}.1.{number}" for number in (1, 2, 3)]
    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == f"{SERIES}.3"
    assert sorted(one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence) == instances
    pixels = written.get_pixels_by_source_instance(instances, assert_missing_frames_are_empty=True)
    for number, seen in zip((1, 2, 3), pixels[..., 0], strict=True):
        assert np.array_equal(seen, masked(model, tmp_path / f"in/ct/{9 - number}.dcm"))
    plain = pydicom.dcmread(tmp_path / "out/ct_seg.dcm")
    assert int(plain.NumberOfFrames) == sum(bool(one.any()) for one in pixels)


@pytest.mark.parametrize("calibrated", [{}, {"PixelSpacing": [0.2, 0.2]}])
def test_a_radiograph_without_position_and_suffix_gets_a_segmentation_too(model, tmp_path, calibrated):
    radiograph, pixels = "1.2.840.10008.5.1.4.1.1.1", picture(4, 44, 40).astype(np.uint16) * 4
    path = write_slice(tmp_path / "in/IM0001", pixels, sop=radiograph, Modality="CR", **calibrated)
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--probabilities") == 0
    written = highdicom.seg.segread(tmp_path / "out/IM0001_seg.dcm")
    seen = written.get_pixels_by_source_instance([f"{SERIES}.1.1"])[0, ..., 0]
    path = path.rename(path.with_suffix(".dcm"))
    prediction = dusss_core.load(model, "cpu").predict(path)
    assert np.array_equal(seen, prediction.mask)
    fractions = highdicom.seg.segread(tmp_path / "out/IM0001_probabilities_seg.dcm")
    assert fractions.SegmentationType == "FRACTIONAL"
    seen = fractions.get_pixels_by_source_instance([f"{SERIES}.1.1"])[0, ..., 0]
    assert np.allclose(seen, prediction.probabilities, atol=1 / 255)


def test_files_that_are_called_by_their_uid_are_read(model, tmp_path, capsys):
    for number in (0, 1):
        tags = {"SeriesInstanceUID": f"{SERIES}.{number}"}
        write_slice(tmp_path / f"in/1.2.840.113619.2.55.{number}", picture(number, 40, 36) * 4, number, **tags)
    (tmp_path / "in/notes.txt").write_text("not a picture")
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") == 0
    names = {f"1.2.840.113619.2.55.{number}_seg.dcm" for number in (0, 1)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, JOURNAL}
    assert run("predict", model, tmp_path / "in/1.2.840.113619.2.55.1", "--out", tmp_path / "one") == 0
    assert run("predict", model, tmp_path / "in/notes.txt", "--out", tmp_path / "one") == 2
    assert "no reader for '.txt' files" in capsys.readouterr().err


def test_the_directory_of_a_medium_is_no_picture(model, tmp_path, capsys):
    dated = {"StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1", "SeriesNumber": 1, "PatientName": "A"}
    write_slice(tmp_path / "cd/IM1", picture(1, 40, 36) * 4, **dated)
    listing = pydicom.fileset.FileSet()
    listing.add(tmp_path / "cd/IM1")
    listing.write(tmp_path / "medium")
    assert (tmp_path / "medium/DICOMDIR").is_file()
    assert run("predict", model, tmp_path / "medium", "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").rglob("*_seg.dcm"))) == 1
    assert run("predict", model, tmp_path / "medium/DICOMDIR", "--out", tmp_path / "out") == 2
    assert "a DICOMDIR, which holds no picture" in capsys.readouterr().err


def test_what_is_named_twice_is_done_once_and_links_of_other_names_are_files_of_their_own(tmp_path):
    for number in (1, 2):
        write_slice(tmp_path / f"in/ct/{number}.dcm", picture(number, 40, 36) * 4, number)
    drawn(tmp_path / "in/p.tif")
    save(tmp_path / "in/a.png", picture(1))
    (tmp_path / "in/b.png").symlink_to(tmp_path / "in/a.png")
    one = find_jobs([tmp_path / "in"], tmp_path / "out")
    assert [(job.name, len(job.files)) for job in one] == [("a", 1), ("b", 1), ("ct", 2), ("p", 1)]
    again = [tmp_path / "in/ct/1.dcm", tmp_path / "in/ct/../a.png", tmp_path / "in"]
    assert find_jobs([tmp_path / "in", *again], tmp_path / "out") == one
    page = f"{tmp_path}/in/p.tif#1"
    assert len(find_jobs([page, page], tmp_path / "out")) == 1


def test_several_classes_are_named_in_the_segmentation_and_indexed_in_pictures(student_file, tmp_path):
    model = student_file(image={"classes": 2, "names": ["cyst", "tumour"]})
    write_slice(tmp_path / "in/a.dcm", picture(1, 40, 36).astype(np.uint16))
    save(tmp_path / "in/b.png", picture(2))
    codes = ["--code", "367643001^SCT^Cyst", "--code", "108369006^SCT^Neoplasm"]
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", *codes) == 0
    written = highdicom.seg.segread(tmp_path / "out/a_seg.dcm")
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["cyst", "tumour"]
    seen = written.get_pixels_by_source_instance([f"{SERIES}.1.1"], combine_segments=True)[0]
    assert np.array_equal(seen, masked(model, tmp_path / "in/a.dcm"))
    assert np.array_equal(read_mask(tmp_path / "out/b.png"), masked(model, tmp_path / "in/b.png"))


def test_overlay_and_probabilities_lie_beside_the_mask(model, tmp_path):
    path = save(tmp_path / "a.png", picture(1, 50, 40))
    assert run("predict", model, path, "--out", tmp_path / "out", "--overlay", "--probabilities") == 0
    mask, probabilities = dusss_core.load(model, "cpu").predict(path)
    stored = np.asarray(Image.open(tmp_path / "out/a_probability.png"))
    assert np.allclose(stored / 65535, probabilities, atol=1e-4)
    overlay = np.asarray(Image.open(tmp_path / "out/a_overlay.png"))
    coloured = overlay.max(2) != overlay.min(2)
    assert coloured.any()
    assert not coloured[mask == 0].any()


def test_what_was_done_is_left_out_until_the_file_the_model_or_the_options_change(model, student_file, tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", picture(i))
    command = ("predict", model, tmp_path / "in", "--out", tmp_path / "out")

    def done() -> list[str]:
        before = (tmp_path / "out" / JOURNAL).read_text().splitlines() if (tmp_path / "out").exists() else []
        assert run(*command) == 0
        return [
            json.loads(line)["name"] for line in (tmp_path / "out" / JOURNAL).read_text().splitlines()[len(before) :]
        ]

    assert done() == ["0", "1", "2"]
    assert done() == []
    save(tmp_path / "in/1.png", picture(7, 60, 60))
    (tmp_path / "out/2.png").unlink()
    assert done() == ["1", "2"]
    assert read_mask(tmp_path / "out/1.png").shape == (60, 60)
    command += ("--threshold", "0.6")
    assert done() == ["0", "1", "2"]


def test_no_overlay_or_probability_of_an_earlier_model_stays_beside_new_masks(model, tmp_path):
    for name in ("a.png", "p.tif"):
        drawn(tmp_path / "in" / name)
    command = ("predict", model, tmp_path / "in", "--out", tmp_path / "out")

    def there() -> set[str]:
        return {path.name for path in (tmp_path / "out").iterdir()} - {JOURNAL}

    masks = {"a.png", "p_0000.png", "p_0001.png"}
    assert run(*command, "--overlay", "--probabilities") == 0 and len(there()) == 3 * len(masks)
    (tmp_path / "out/mine.txt").write_text("of another hand")
    assert run(*command, "--threshold", "0.6") == 0
    assert there() == {*masks, "mine.txt"}
    # what was an overlay may have become the mask of another picture
    assert run(*command, "--overlay") == 0
    drawn(tmp_path / "in/a_overlay.png", 3)
    assert run(*command) == 0
    assert there() == {*masks, "mine.txt", "a_overlay.png"}
    assert read_mask(tmp_path / "out/a_overlay.png").shape == (46, 36)
    # a journal of another hand deletes nothing elsewhere
    with (tmp_path / "out" / JOURNAL).open("a") as journal:
        journal.write(json.dumps({"name": "a", "written": ["a.png", "../in/p.tif"]}) + "\n")
    assert run(*command) == 0 and (tmp_path / "in/p.tif").is_file()


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_an_output_folder_that_cannot_be_is_named(model, tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", picture(1))
    (tmp_path / "file").write_text("x")
    assert run("predict", model, "a.png", "--out", out) == 2
    told = capsys.readouterr().err
    assert f"{out}: no folder" in told and "name another folder for --out" in told


def test_a_line_that_was_cut_off_takes_no_other_with_it(model, tmp_path):
    for number in range(2):
        save(tmp_path / f"in/{number}.png", picture(number))
    command = ("predict", model, tmp_path / "in", "--out", tmp_path / "out")
    assert run(*command) == 0
    journal = tmp_path / "out" / JOURNAL
    whole = journal.read_text()
    journal.write_text(whole[: len(whole) - 20])
    assert run(*command) == 0
    torn, *lines = journal.read_text().splitlines()[1:]
    assert not torn.endswith("}") and [json.loads(line)["name"] for line in lines] == ["1"]


def test_files_that_cannot_be_read_are_named_and_the_others_done(model, tmp_path, capsys):
    save(tmp_path / "in/good.png", picture(1))
    (tmp_path / "in/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "in/bad.nii.gz").write_bytes(b"nothing")
    (tmp_path / "in/bad.dcm").write_bytes(b"nothing")
    (tmp_path / "in/readme.txt").write_text("not a picture")
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "3 could not be predicted" in told
    assert all(name in told for name in ("bad.png", "bad.nii.gz", "bad.dcm"))
    assert (tmp_path / "out/good.png").is_file()


def test_a_cine_that_no_segmentation_can_refer_to_leaves_nothing_and_its_frames_get_pictures(model, tmp_path, capsys):
    frames = np.stack([picture(number, 40, 36) for number in range(3)])
    path = write_slice(tmp_path / "in/cine.dcm", frames, sop=ULTRASOUND, NumberOfFrames=3)
    assert run("predict", model, path, "--out", tmp_path / "out", "--overlay") == 2
    assert f"name its frames, '{path}#0' to '{path}#2', for a PNG of each" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("cine*"))
    assert run("predict", model, *(f"{path}#{number}" for number in range(3)), "--out", tmp_path / "out") == 0
    for number in range(3):
        expected = masked(model, f"{path}#{number}")
        assert np.array_equal(read_mask(tmp_path / f"out/cine_{number}.png"), expected)


def test_what_would_mend_each_failure_is_told(model, tmp_path, capsys):
    save(tmp_path / "in/good.png", picture(1))
    (tmp_path / "in/bad.png").write_bytes(b"")
    (tmp_path / "in/bad.nii").write_bytes(b"")
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("; export or copy the file again") == 2


def test_a_page_is_named_by_any_path_to_its_file(model, tmp_path, monkeypatch):
    pages = [Image.fromarray(picture(number)) for number in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(("pages.tif#2", "./pages.tif#2", ".//pages.tif#2")):
        assert run("predict", model, path, "--out", f"out{number}") == 0
        assert np.array_equal(read_mask(f"out{number}/pages_2.png"), masked(model, pages[2]))


def test_a_file_whose_tags_are_damaged_does_not_keep_others_from_being_done(model, tmp_path):
    for number in (1, 2):
        write_slice(tmp_path / f"in/ct/{number}.dcm", picture(number) * 8, number)
    odd = write_slice(tmp_path / "in/odd.dcm", picture(3) * 8, 7777)
    odd.write_bytes(odd.read_bytes().replace(b"7777", b"77x7"))
    save(tmp_path / "in/good.png", picture(1))
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") in (0, 2)
    assert {path.name for path in (tmp_path / "out").rglob("*.*")} >= {"good.png", "ct_seg.dcm"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["missing.png"], "no such file"), ([""], "an empty name"), (["."], "no picture"), (["a.xyz"], "no reader")],
    ids=["missing", "no name", "empty folder", "unknown format"],
)
def test_what_a_user_can_mend_ends_with_code_2(model, tmp_path, monkeypatch, capsys, arguments, told):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    if arguments == ["a.xyz"]:
        (tmp_path / "empty/a.xyz").write_text("x")
    assert run("predict", model, *arguments, "--out", tmp_path / "out") == 2
    assert told in capsys.readouterr().err


def test_a_threshold_that_would_do_nothing_is_refused(student_file, tmp_path, capsys):
    save(tmp_path / "a.png", picture(1))
    several = student_file(image={"classes": 2})
    assert run("predict", several, tmp_path / "a.png", "--out", tmp_path / "out", "--threshold", 0.6) == 2
    assert "several classes" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_an_error_of_the_program_ends_with_code_1(model, tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", picture(1))

    def broken(self, pictures):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("dusss_core.student.student.Student.predict_each", broken)
    assert run("predict", model, path, "--out", tmp_path / "out") == 1


def test_an_unfitted_student_predicts_nothing_until_it_was_fitted(student_file, tmp_path, capsys):
    model = student_file(layers="unfitted")
    for i in range(3):
        save(tmp_path / f"in/{i}.png", picture(i))
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") == 2
    assert "fit" in capsys.readouterr().err
    assert run("fit", model, tmp_path / "in", "--out", tmp_path / "mine.safetensors") == 0
    assert run("predict", tmp_path / "mine.safetensors", tmp_path / "in", "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
