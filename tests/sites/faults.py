"""A folder of made-up pictures, clean or with one fault planted in each of some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.sites.builders import save, write_site

SIZE = 64
PER_SPLIT = {"train": 200, "val": 20, "test": 20}


@dataclass
class Folder:
    """Pictures, masks and rows of a made-up site; the picture's left is `left`."""

    path: Path
    rows: list[dict] = field(default_factory=list)

    def picture(self, i: int) -> Path:
        return self.path / self.rows[i]["image"]

    def mask(self, i: int) -> Path:
        return self.path / self.rows[i]["mask"]

    def pixels(self, i: int) -> np.ndarray:
        return np.asarray(Image.open(self.picture(i)))

    def row(self, i: int) -> int:
        """As the manifest counts it."""
        return i + 2

    def write(self) -> Path:
        """The site file."""
        return write_site(self.path, self.rows)


def picture_of(number: int, size: int = SIZE) -> np.ndarray:
    """A bright body on black with texture like no other's, uint8; what pictures of one kind have in common is there."""
    draw = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = ((np.abs(x) / 0.92) ** 4 + (np.abs(y) / 0.92) ** 4) < 1
    field = sum(
        np.asarray(
            Image.fromarray(draw.normal(size=(n, n)).astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        )
        / strength
        for n, strength in ((4, 3.0), (9, 5.0), (20, 9.0))
    )
    value = body * (0.5 + 0.18 * y + 0.1 * np.cos(3 * x) + 0.3 * field).clip(0.12, 1)
    return np.rint(value * 235).astype(np.uint8)


def mask_of(side: str, height: str, number: int, size: int = SIZE) -> np.ndarray:
    """An ellipse in a quarter of the picture, uint8, 0 and 255."""
    draw = np.random.default_rng(1000 + number)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    across, down = draw.uniform(-0.04, 0.04, 2)
    centre = (0.3 if side == "left" else 0.7) + across, (0.3 if height == "upper" else 0.7) + down
    radius = draw.uniform(0.07, 0.13, 2)
    return ((((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2) < 1).astype(np.uint8) * 255


def clean(path: Path) -> Folder:
    """A site without a fault."""
    folder = Folder(path)
    for split, count in PER_SPLIT.items():
        for _ in range(count):
            i = len(folder.rows)
            side, height = ("left", "right")[i % 2], ("upper", "lower")[i // 2 % 2]
            save(path / f"images/{i}.png", picture_of(i))
            save(path / f"masks/{i}.png", mask_of(side, height, i))
            text = f"One infected area in the {height} {side} lung, {('dense', 'patchy', 'faint')[i % 3]}."
            folder.rows.append(
                {
                    "id": f"r{i}",
                    "image": f"images/{i}.png",
                    "mask": f"masks/{i}.png",
                    "text": text,
                    "split": split,
                    "patient": f"p{i}",
                    "labelled": int(i % 3 == 0 or split != "train"),
                }
            )
    return folder


Plant = Callable[[Folder, int], None]
FAULTS: dict[str, tuple[str, Plant]] = {}
"""Kind of finding -> its level, and what plants it in the row of a position."""


def fault(kind: str, level: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        FAULTS[f"{kind}/{plant.__name__}"] = (level, plant)
        return plant

    return note


def text(kind: str, level: str, sentence: str, name: str) -> None:
    def plant(folder: Folder, i: int) -> None:
        folder.rows[i]["text"] = sentence

    plant.__name__ = name
    fault(kind, level)(plant)


def row(kind: str, level: str, name: str, **cells: str) -> None:
    def plant(folder: Folder, i: int) -> None:
        folder.rows[i] |= cells

    plant.__name__ = name
    fault(kind, level)(plant)


# ---- files ----


@fault("picture_unreadable", "error")
def noise_in_place_of_a_picture(folder, i):
    folder.picture(i).write_bytes(b"no picture at all")


@fault("picture_unreadable", "error")
def empty_file(folder, i):
    folder.picture(i).write_bytes(b"")


@fault("picture_unreadable", "error")
def truncated_file(folder, i):
    folder.picture(i).write_bytes(folder.picture(i).read_bytes()[:900])


@fault("mask_unreadable", "error")
def truncated_mask(folder, i):
    folder.mask(i).write_bytes(folder.mask(i).read_bytes()[:60])


@fault("suffix", "note")
def jpeg_called_png(folder, i):
    Image.fromarray(folder.pixels(i)).save(folder.picture(i), format="JPEG", quality=95)


row("file_missing", "error", "picture_that_is_not_there", image="images/gone.png")
row("manifest_row", "error", "unknown_split", split="tset")
row("id_twice", "error", "id_of_another_row", id="r1")
row("patient_key", "warning", "the_same_patient_written_otherwise", patient="P-231 ")
row("torn_patient", "error", "patient_of_another_split", patient="p230")


# ---- pictures ----


@fault("tiny", "warning")
def thumbnail(folder, i):
    save(folder.picture(i), picture_of(i, 20))
    save(folder.mask(i), mask_of("left", "upper", i, 20))
    folder.rows[i]["text"] = "One infected area in the upper left lung, dense."


@fault("odd_size", "warning")
def far_larger(folder, i):
    save(folder.picture(i), picture_of(i, 400))
    save(folder.mask(i), mask_of("left", "upper", i, 400))
    folder.rows[i]["text"] = "One infected area in the upper left lung, dense."


@fault("odd_shape", "warning")
def a_strip(folder, i):
    for path in (folder.picture(i), folder.mask(i)):
        save(path, np.asarray(Image.open(path).resize((192, 40), Image.Resampling.NEAREST)))


@fault("alpha", "warning")
def alpha_channel(folder, i):
    Image.fromarray(folder.pixels(i)).convert("RGBA").save(folder.picture(i))


@fault("odd_mode", "warning")
def cmyk(folder, i):
    folder.rows[i]["image"] = f"images/{i}.jpg"
    picture = Image.open(folder.path / f"images/{i}.png").convert("RGB").convert("CMYK")
    picture.save(folder.picture(i), quality=95)


@fault("mixed_bits", "warning")
def sixteen_bits(folder, i):
    Image.fromarray(folder.pixels(i).astype(np.uint16) * 257).save(folder.picture(i))


@fault("mixed_colour", "warning")
def colour_among_gray(folder, i):
    Image.fromarray(folder.pixels(i)).convert("RGB").save(folder.picture(i))


@fault("flat", "warning")
def one_value(folder, i):
    save(folder.picture(i), np.full((SIZE, SIZE), 90, np.uint8))


@fault("black", "warning")
def almost_black(folder, i):
    save(folder.picture(i), (folder.pixels(i) // 80).astype(np.uint8))


@fault("intensity", "warning")
def washed_out(folder, i):
    save(folder.picture(i), (200 + folder.pixels(i) // 6).astype(np.uint8))


@fault("inverted", "warning")
def negative(folder, i):
    save(folder.picture(i), 255 - folder.pixels(i))


@fault("exif", "note")
def turned_by_its_header(folder, i):
    header = Image.Exif()
    header[0x0112] = 3
    Image.fromarray(folder.pixels(i)).save(folder.picture(i), exif=header)


@fault("pages", "warning")
def several_pages(folder, i):
    folder.rows[i]["image"] = f"images/{i}.tif"
    first, *more = (Image.fromarray(picture_of(n)) for n in (i, 900, 901))
    first.save(folder.picture(i), save_all=True, append_images=more)


# ---- masks ----


@fault("mask_size", "error")
def mask_of_another_size(folder, i):
    save(folder.mask(i), mask_of("left", "upper", i, 50))


@fault("gray_mask", "error")
def gray_values(folder, i):
    mask = np.array(Image.open(folder.mask(i)))
    mask[:, SIZE // 2 :][mask[:, SIZE // 2 :] > 0] = 127
    mask[20:24, 20:24], mask[40:44, 40:44] = 127, 255
    save(folder.mask(i), mask)


@fault("gray_mask", "error")
def half_gray(folder, i):
    save(folder.mask(i), np.array(Image.open(folder.mask(i))) // 2)


@fault("unknown_class", "error")
def second_class(folder, i):
    save(folder.mask(i), np.array(Image.open(folder.mask(i))) // 127)


@fault("mask_values", "error")
def mask_in_colours(folder, i):
    mask = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask[10:20, 10:20], mask[30:40, 30:40] = (255, 0, 0), (0, 255, 0)
    save(folder.mask(i), mask)


@fault("mask_is_picture", "error")
def picture_named_as_mask(folder, i):
    folder.rows[i]["mask"] = folder.rows[i]["image"]


@fault("empty_mask", "warning")
def mask_without_a_finding(folder, i):
    save(folder.mask(i), np.zeros((SIZE, SIZE), np.uint8))


@fault("full_mask", "warning")
def mask_of_everything(folder, i):
    save(folder.mask(i), np.full((SIZE, SIZE), 255, np.uint8))


@fault("inverted_mask", "warning")
def mask_of_the_rest(folder, i):
    save(folder.mask(i), 255 - np.array(Image.open(folder.mask(i))))


@fault("small_mask", "warning")
def one_pixel(folder, i):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    where = np.argwhere(np.array(Image.open(folder.mask(i))) > 0)
    mask[tuple(where[len(where) // 2])] = 255
    save(folder.mask(i), mask)


@fault("mask_off_picture", "warning")
def mask_on_the_border(folder, i):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    left = "left" in folder.rows[i]["text"]
    mask[4:60, 0:2] = 255
    save(folder.mask(i), mask if left else mask[:, ::-1])


@fault("lossy_mask", "warning")
def jpeg_mask(folder, i):
    folder.rows[i]["mask"] = f"masks/{i}.jpg"
    Image.open(folder.path / f"masks/{i}.png").save(folder.mask(i))


@fault("soft_mask", "note")
def antialiased_mask(folder, i):
    mask = Image.open(folder.mask(i)).resize((SIZE // 2,) * 2, Image.Resampling.BICUBIC)
    mask.resize((SIZE,) * 2, Image.Resampling.BICUBIC).save(folder.mask(i))


@fault("shared_mask", "warning")
def mask_of_another_picture(folder, i):
    save(folder.mask(i), np.array(Image.open(folder.mask(i - 4))))


@fault("mask_name", "warning")
def mask_of_the_neighbour(folder, i):
    folder.rows[i]["mask"] = folder.rows[i - 4]["mask"]
    folder.rows[i - 4] |= {"mask": "", "labelled": 0}


# ---- duplicates ----


@fault("exact_duplicate", "warning")
def the_same_picture_again(folder, i):
    save(folder.picture(i), folder.pixels(i - 4), compress_level=0)


@fault("exact_duplicate_across_splits", "error")
def the_same_picture_in_test(folder, i):
    folder.rows[i]["split"] = "test"
    save(folder.picture(i), folder.pixels(i - 4))


@fault("near_duplicate", "warning")
def recompressed(folder, i):
    folder.rows[i]["image"] = f"images/{i}.jpg"
    Image.fromarray(folder.pixels(i - 4)).save(folder.picture(i), quality=70)


@fault("near_duplicate", "warning")
def mirrored_and_brighter(folder, i):
    save(
        folder.picture(i),
        np.minimum(255, folder.pixels(i - 4)[:, ::-1] * 1.05 + 6 * (folder.pixels(i - 4)[:, ::-1] > 0)).astype(
            np.uint8
        ),
    )


@fault("near_duplicate_across_splits", "warning")
def scaled_in_validation(folder, i):
    folder.rows[i]["split"] = "val"
    for path, source in ((folder.picture(i), folder.picture(i - 4)), (folder.mask(i), folder.mask(i))):
        Image.open(source).resize((90, 90), Image.Resampling.BILINEAR).point(lambda v: v).save(path)


# ---- sentences ----

text("no_sentence", "note", "", "no_sentence_at_all")
text("placeholder", "warning", "n/a", "placeholder")
text("short_sentence", "warning", "dense", "one_word")
text("foreign_sentence", "warning", "Ein infizierter Bereich im linken Oberlappen der Lunge.", "german")
text("foreign_sentence", "warning", "Инфекция в верхней доле левого легкого.", "russian")
text("unclear_language", "note", "Infiltraat vasakul kopsus", "estonian")
text("misspelt", "warning", "One infeced area in the {height} {side} lung, dense.", "misspelt")
text("misspelt", "warning", "One infected area in the {height} {side} lung, desne.", "letters_exchanged")
text("broken_text", "warning", "One infected area in the {height} {side} lung, Ã¼ber dense.", "broken_letters")
text("text_name", "warning", "One infected area in the {height} {side} lung, seen by Dr. Miller.", "doctor")
text(
    "text_name", "warning", "Patient: Maria Gonzalez, one infected area in the {height} {side} lung.", "patient_by_name"
)
text("text_date", "warning", "One infected area in the {height} {side} lung, compared with 12.03.2019.", "a_date")
text("text_number", "warning", "MRN 4471923: one infected area in the {height} {side} lung.", "record_number")
text("text_contact", "warning", "One infected area in the {height} {side} lung, call miller@hospital.org.", "address")
text("contradicts_side", "warning", "One infected area in the {height} {other} lung, dense.", "other_side")
text("contradicts_height", "warning", "One infected area in the {beyond} {side} lung, dense.", "other_height")
text(
    "contradicts_count", "warning", "Two infected areas in the {height} {side} lung, dense.", "two_and_the_mask_has_one"
)
text(
    "contradicts_both_sides", "warning", "Infection of both lungs, {height} parts, dense.", "both_and_the_mask_has_one"
)
text("denies_mask", "warning", "No infected area in the lungs.", "nothing_and_the_mask_has_one")
row("private_key", "warning", "id_with_a_name", id="john_smith_2")


@fault("asserts_empty", "warning")
def finding_and_empty_mask(folder, i):
    save(folder.mask(i), np.zeros((SIZE, SIZE), np.uint8))


# ---- headers ----


@fault("identifying_tags", "warning")
def dicom_with_a_name(folder, i):
    import pydicom
    from pydicom.dataset import FileMetaDataset

    pixels = folder.pixels(i)
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PatientName, data.PatientBirthDate = "Doe^Jane", "19700101"
    data.WindowCenter, data.WindowWidth = 128, 256
    data.PixelData = pixels.tobytes()
    folder.rows[i]["image"] = f"images/{i}.dcm"
    data.save_as(folder.picture(i), enforce_file_format=True)


def plant_all(folder: Folder) -> dict[str, list[int]]:
    """Plant every fault, each in a row of its own, every third.

    Returns:
        Kind of finding -> rows, as the manifest counts.
    """
    planted: dict[str, list[int]] = {}
    for i, (name, (_, plant)) in enumerate(FAULTS.items()):
        position = 5 + 3 * i
        cells = folder.rows[position]
        plant(folder, position)
        side = "left" if position % 2 == 0 else "right"
        height = "upper" if position // 2 % 2 == 0 else "lower"
        others = {
            "other": {"left": "right", "right": "left"}[side],
            "beyond": {"upper": "lower", "lower": "upper"}[height],
        }
        cells["text"] = cells["text"].format(side=side, height=height, **others)
        planted.setdefault(name.partition("/")[0], []).append(folder.row(position))
    return planted
