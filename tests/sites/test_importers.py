"""Data in a usual layout become a manifest that names every mask and sentence that is there."""

from __future__ import annotations

import openpyxl
import pytest

from dusss_core.errors import UserError
from dusss_core.manifest import read_manifest
from dusss_core.sheets import name_key
from sites import __main__ as command
from sites import importers
from sites.importers import Imported, ImportOptions, import_folder, import_lvit
from tests.sites.builders import mask, picture, save, write_rows


def write_xlsx(path, rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


@pytest.fixture
def lvit(tmp_path):
    """Train as in QaTa-COV19 (masks and texts with a prefix), Test as in MoNuSeg."""
    train, test = tmp_path / "Train_Folder", tmp_path / "Test_Folder"
    for i in range(3):
        save(train / f"img/sub-S0{i}_{i}.png", picture(i))
        save(train / f"labelcol/mask_sub-S0{i}_{i}.png", mask(i))
    save(train / "img/bare.jpg", picture(8))
    write_xlsx(
        train / "Train_text.xlsx",
        [
            ["image", "DESCRIPTION"],
            ["mask_sub-S00_0.png", "left lung. "],
            ["sub-S01_1.png", "right\nlung"],
            ["sub-S01_1.png", "something else"],
            ["sub-S02_2", "both"],
            ["gone.png", "nobody"],
        ],
    )
    (train / "~$Train_text.xlsx").write_bytes(b"a lock file of Excel")
    save(test / "img/t.tif", picture(9))
    save(test / "labelcol/t.png", mask(9))
    write_xlsx(test / "Test_text.xlsx", [["Image", "Description"], ["t.tif", "upper"]])
    return tmp_path


def test_lvit_masks_and_texts_are_found_by_any_name(lvit):
    result = import_lvit(lvit)
    assert result.manifest == lvit / "manifest.csv"
    records = {record.id: record for record in read_manifest(result.manifest)}
    assert {name: record.text for name, record in records.items()} == {
        "sub-S00_0": "left lung.",
        "sub-S01_1": "right lung",
        "sub-S02_2": "both",
        "bare": "",
        "t": "upper",
    }
    assert {record.split for name, record in records.items() if name != "t"} == {"train"}
    assert records["t"].split == "test"
    assert records["t"].mask == lvit / "Test_Folder/labelcol/t.png"
    assert records["sub-S00_0"].mask == lvit / "Train_Folder/labelcol/mask_sub-S00_0.png"
    assert records["bare"].mask is None
    assert not records["bare"].labelled
    said = "\n".join(result.warnings)
    assert "named twice with different cells, the first row counts: 1 (sub-S01_1.png)" in said
    assert "no picture for these texts: 1 (gone)" in said
    assert "pictures without a mask: 1 (bare)" in said
    assert "pictures without a text: 1 (bare)" in said


def test_further_columns_are_joined_by_name(lvit, tmp_path):
    names = [f"sub-S0{i}_{i}" for i in range(3)] + ["T"]
    table = write_rows(tmp_path / "hospitals.csv", [{"slide": n, "hospital": f"H{n[-1]}", "subject": n} for n in names])
    options = ImportOptions(out=tmp_path / "m.csv", columns=table, key="slide", extract={"number": r"S(\d+)"})
    result = import_lvit(lvit, options)
    records = {record.id: record for record in read_manifest(tmp_path / "m.csv")}
    assert records["sub-S01_1"].extra == {"hospital": "H1", "number": "01"}
    assert records["sub-S01_1"].patient == "sub-S01_1"
    assert records["t"].extra == {"hospital": "HT", "number": ""}
    assert records["bare"].extra["hospital"] == ""
    assert "no row for these pictures: 1 (bare)" in "\n".join(result.warnings)


def test_a_manifest_is_not_overwritten_unasked(lvit):
    (lvit / "manifest.csv").write_text("mine")
    with pytest.raises(UserError, match=r"is there already\n  -> .*--force"):
        import_lvit(lvit)
    assert (lvit / "manifest.csv").read_text() == "mine"
    assert len(import_lvit(lvit, ImportOptions(force=True)).records) == 5


def test_a_plain_folder(tmp_path):
    for i in range(3):
        save(tmp_path / f"images/a{i}.png", picture(i))
    save(tmp_path / "masks/a0.png", mask(0))
    save(tmp_path / "masks/mask_A1.tif", mask(1))
    write_rows(
        tmp_path / "texts.csv",
        [
            {"id": f"a{i}", "Report": f"text {i}", "split": s, "subject": f"p{i}", "age": str(i)}
            for i, s in enumerate(("train", "val", ""))
        ],
    )
    records = read_manifest(import_folder(tmp_path).manifest)
    assert [(r.text, r.split, r.patient, r.extra) for r in records] == [
        ("text 0", "train", "p0", {"age": "0"}),
        ("text 1", "val", "p1", {"age": "1"}),
        ("text 2", "train", "p2", {"age": "2"}),
    ]
    assert [record.mask is not None for record in records] == [True, True, False]


def test_a_folder_with_splits(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / f"images/{split}.png", picture(1))
        save(tmp_path / split / f"masks/{split}.png", mask(1))
    write_rows(tmp_path / "texts.csv", [{"image": "train.png", "text": "here"}])
    write_rows(tmp_path / "test/texts.csv", [{"image": "test.png", "text": "there"}])
    records = read_manifest(import_folder(tmp_path).manifest)
    assert [(r.id, r.split, r.text) for r in records] == [
        ("train", "train", "here"),
        ("test", "test", "there"),
    ]


def test_a_layout_of_the_command_is_read_by_the_importer_of_its_name(tmp_path, monkeypatch, capsys):
    assert all(callable(getattr(importers, f"import_{name}")) for name in command.LAYOUTS)
    monkeypatch.setitem(command.LAYOUTS, "other", "another layout")
    mine = Imported(tmp_path / "mine.csv", [])
    monkeypatch.setattr(importers, "import_other", lambda folder, options: mine, raising=False)
    assert command.main(["import", "other", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{mine.manifest}: 0 records\n"


@pytest.mark.parametrize("layout", [import_lvit, import_folder])
def test_a_folder_of_another_layout_is_refused(tmp_path, layout):
    with pytest.raises(UserError, match="-> name the folder that holds"):
        layout(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        layout(tmp_path / "gone")


def test_one_name_for_two_pictures_is_refused(lvit):
    save(lvit / "Test_Folder/img/bare.png", picture(1))
    with pytest.raises(UserError, match="two pictures are called 'bare'"):
        import_lvit(lvit)
    assert not (lvit / "manifest.csv").exists()
    save(lvit / "Test_Folder/img/bare.jpg", picture(1))
    with pytest.raises(UserError, match=r"bare\.png: has the same name as bare\.jpg"):
        import_lvit(lvit)


def test_tables_that_cannot_be_used_are_named(lvit):
    (lvit / "Train_Folder/Train_text.xlsx").write_bytes(b"not a zip")
    with pytest.raises(UserError, match=r"Train_text\.xlsx: could not be read"):
        import_lvit(lvit)
    write_xlsx(lvit / "Train_Folder/Train_text.xlsx", [["which", "Description"], ["a", "b"]])
    with pytest.raises(UserError, match=r"Train_text\.xlsx, row 1: no column that names the pictures"):
        import_lvit(lvit)


def test_names_meet_without_prefix_suffix_and_case():
    assert {name_key(n) for n in ("a.b.png", "mask_a.b.png", "A.B.TIF", "x/mask_a.b.nii.gz", "a.b")} == {"a.b"}


@pytest.mark.parametrize("known", ["id", "mask", "labelled", "patient", "text_2"])
def test_a_sheet_with_any_column_of_a_manifest_gives_a_manifest_that_can_be_read(tmp_path, known):
    for i in range(2):
        save(tmp_path / f"images/a{i}.png", picture(i))
        save(tmp_path / f"masks/m{i}.png", mask(i))
    rows = [
        {"image": f"a{i}.png", known: {"mask": f"m{i}.png", "labelled": "0"}.get(known, f"x{i}"), "text": "here"}
        for i in (0, 1)
    ]
    write_rows(tmp_path / "texts.csv", rows)
    first, second = read_manifest(import_folder(tmp_path).manifest)
    assert (first.id, second.id) == ("a0", "a1")
    assert (tmp_path / "manifest.csv").read_text().splitlines()[0].split(",").count(known) <= 1
    assert (second.mask == tmp_path / "masks/m1.png") == (known == "mask")
    assert second.more_texts == (("x1",) if known == "text_2" else ())
    assert second.patient == ("x1" if known == "patient" else "")


def test_labels_that_a_sheet_takes_back_are_not_trained_on(tmp_path):
    save(tmp_path / "images/a.png", picture(0))
    save(tmp_path / "masks/a.png", mask(0))
    write_rows(tmp_path / "texts.csv", [{"image": "a.png", "text": "here", "labelled": "0"}])
    (record,) = read_manifest(import_folder(tmp_path).manifest)
    assert record.mask is not None
    assert not record.labelled


def test_a_column_of_sentences_that_is_not_known_is_named_with_those_that_are(tmp_path):
    save(tmp_path / "images/a.png", picture(0))
    write_rows(tmp_path / "texts.csv", [{"image": "a.png", "age": "50", "radiology_note": "dense area, left lung"}])
    result = import_folder(tmp_path)
    said = "\n".join(result.warnings)
    assert "it has: age, radiology_note; accepted: description, text, report" in said
    assert "--text radiology_note" in said
    options = ImportOptions(text="Radiology_Note", force=True)
    assert read_manifest(import_folder(tmp_path, options).manifest)[0].text == "dense area, left lung"
    with pytest.raises(UserError, match="no column 'notes'"):
        import_folder(tmp_path, ImportOptions(text="notes", force=True))


@pytest.mark.parametrize("beside", [True, False])
def test_columns_of_any_name_are_found_in_either_sheet(tmp_path, beside):
    save(tmp_path / "images/a.png", picture(1))
    rows = [["Bild", "Befund", "Patient"], ["a.png", "One nodule on the left.", "7"]]
    sheet = tmp_path / ("befunde.xlsx" if beside else "texts.xlsx")
    write_xlsx(sheet, rows)
    if beside:
        assert any("befunde.xlsx" in line and "--columns" in line for line in import_folder(tmp_path).warnings)
    options = ImportOptions(columns=sheet if beside else None, key="Bild", text="Befund", force=True)
    (record,) = read_manifest(import_folder(tmp_path, options).manifest)
    assert (record.text, record.patient) == ("One nodule on the left.", "7")
    with pytest.raises(UserError, match="no column 'Report'"):
        import_folder(tmp_path, ImportOptions(columns=options.columns, key="Bild", text="Report", force=True))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sheet_of_texts_may_have_any_usual_separator(tmp_path, separator):
    save(tmp_path / "images/a.png", picture(1))
    (tmp_path / "texts.csv").write_text(f"image{separator}text\na.png{separator}a nodule\n", encoding="utf-8")
    (record,) = read_manifest(import_folder(tmp_path).manifest)
    assert record.text == "a nodule"


@pytest.fixture
def plain(tmp_path):
    """Three pictures with masks of their names."""
    for i in range(3):
        save(tmp_path / f"images/a{i}.png", picture(i))
        save(tmp_path / f"masks/a{i}.png", mask(i))
    return tmp_path


def imported(folder, sheet, rows):
    """The records of a folder with `rows` in texts.csv, or beside it in a sheet that is named."""
    table = write_rows(folder / sheet, rows)
    return import_folder(folder, ImportOptions(columns=None if sheet == "texts.csv" else table, force=True))


@pytest.mark.parametrize("sheet", ["texts.csv", "columns.csv"])
def test_masks_and_what_may_be_trained_on_are_taken_from_either_sheet(plain, sheet):
    (plain / "masks/a2.png").rename(plain / "masks/other.png")
    rows = [
        {"image": f"a{i}", "labelled": labelled, "mask": mask, "split": split}
        for i, (labelled, mask, split) in enumerate((("0", "", "Test"), ("", "", ""), ("no", "other.png", "")))
    ]
    result = imported(plain, sheet, rows)
    records = read_manifest(result.manifest)
    assert [record.labelled for record in records] == [False, True, False]
    assert [record.mask.name for record in records] == ["a0.png", "a1.png", "other.png"]
    assert [record.split for record in records] == ["test", "train", "train"]
    assert not any("no picture for these masks" in line for line in result.warnings)


def test_a_label_that_one_sheet_takes_back_is_not_given_back_by_an_empty_cell_of_the_other(plain):
    write_rows(plain / "texts.csv", [{"image": "a0", "text": "here", "labelled": "0"}])
    rows = [{"image": "a0", "labelled": "", "patient": "p", "mask": "a1.png"}]
    first, second, _ = read_manifest(imported(plain, "columns.csv", rows).manifest)
    assert (first.labelled, first.patient, first.text) == (False, "p", "here")
    assert second.labelled


@pytest.mark.parametrize("sheet", ["texts.csv", "columns.csv"])
@pytest.mark.parametrize("word", ["1", "true", "YES", "1.0", "", "0", "False", "no", "0.0"])
def test_a_sheet_says_what_may_be_trained_on_in_the_words_of_a_manifest(plain, sheet, word):
    result = imported(plain, sheet, [{"image": "a1", "labelled": word}])
    labelled = word not in ("0", "False", "no", "0.0")
    assert [record.labelled for record in read_manifest(result.manifest)] == [True, labelled, True]


@pytest.mark.parametrize("sheet", ["texts.csv", "columns.csv"])
def test_words_that_a_manifest_would_not_know_are_refused_with_their_row(plain, sheet):
    rows = [{"image": "a0", "labelled": "1", "split": "val"}, {"image": "a1", "labelled": "nein", "split": "holdout"}]
    with pytest.raises(UserError, match=rf"{sheet}: 2 problems\n  row 3: unknown split 'holdout' .*\n.*'nein'"):
        imported(plain, sheet, rows)
    assert not (plain / "manifest.csv").exists()


def test_words_that_a_name_gives_and_a_manifest_would_not_know_are_refused_with_the_picture(plain):
    with pytest.raises(UserError, match=r"a0\.png: labelled is 'a0' by --extract\n  -> use 1 or 0"):
        import_folder(plain, ImportOptions(extract={"labelled": ".*"}))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("image,text\na0,left lung, in the apex\na1,right", r"row 2: 3 cells under 2 columns\n  -> .*quotes"),
        ("image;text\na0;left\n\na1;right;apex", r"row 4: 3 cells under 2 columns"),
        ('image,text\na0,"left lung\na1,right\na2,none\n', r"row 2: not a CSV file: .*\n  -> check the quotes"),
        ('image,text\na0,"left\nlung"\na1,"right" lung\n', r"row 3: not a CSV file: .*\n  -> check the quotes"),
        ("image,text,text\na0,left,apex", r"row 1: column 'text' stands there 2 times\n  -> rename one of them"),
        ("image,hospital,Hospital \na0,A,B", r"row 1: column 'hospital' stands there 2 times"),
    ],
)
def test_a_sheet_of_which_something_would_be_lost_is_refused_with_its_row(plain, lines, said):
    (plain / "texts.csv").write_text(lines, encoding="utf-8")
    with pytest.raises(UserError, match=rf"texts\.csv, {said}"):
        import_folder(plain)
    assert not (plain / "manifest.csv").exists()


def sheet_of(folder, rows, edit=lambda book: None):
    """texts.xlsx with `rows`, changed by `edit`."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    edit(book)
    book.save(folder / "texts.xlsx")


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["a0", "left lung", "", "apex"], r"row 2: 4 cells under 3 columns\n  -> name their column"),
        (["a0", "left", '=IF(1,"test","")'], r"row 2: cell C2 is a formula whose value is not in the file\n  -> put"),
        (["a0", "#N/A", "test"], r"row 2: cell B2 is #N/A\n  -> put the value itself"),
    ],
)
def test_an_xlsx_cell_of_which_something_would_be_lost_is_refused_with_its_row(plain, cells, said):
    sheet_of(plain, [["image", "text", "split"], cells])
    with pytest.raises(UserError, match=rf"texts\.xlsx, {said}"):
        import_folder(plain)
    assert not (plain / "manifest.csv").exists()


def test_merged_cells_would_tear_a_patient_apart_and_are_refused(plain):
    rows = [["image", "text", "patient"], ["a0", "left", "p"], ["a1", "right", None]]
    sheet_of(plain, rows, lambda book: book.active.merge_cells("C2:C3"))
    with pytest.raises(UserError, match=r"texts\.xlsx, row 2: the cells C2:C3 are merged.*\n  -> unmerge them"):
        import_folder(plain)


def test_a_second_sheet_with_the_same_columns_is_refused_and_another_one_is_passed_over(plain):
    def two(book):
        book.create_sheet("Test").append(["Text", "Image"])
        book.create_sheet("Legend").append(["what the words mean"])

    sheet_of(plain, [["image", "text"], ["a0", "left"]], two)
    with pytest.raises(UserError, match=r"sheets with the same columns, .*: Sheet, Test\n  -> put all rows into one"):
        import_folder(plain)

    def beside(book):
        two(book)
        del book["Test"]
        book.active.merge_cells("D2:E3")  # beyond the columns
        book.active["A3"] = "a1"
        book.active["B3"] = 7

    sheet_of(plain, [["image", "text"], ["a0", "left"]], beside)
    assert [record.text for record in import_folder(plain).records] == ["left", "7", ""]


def test_cells_of_several_lines_quotes_and_empty_cells_beyond_the_header_are_read(plain):
    lines = '\ufeffimage;text\r\na0;"left ""lower"" lobe;\r\nsecond line";;\r\na1;a 5" scar\r\n\r\na2\r\n'
    (plain / "texts.csv").write_bytes(lines.encode())
    texts = [record.text for record in read_manifest(import_folder(plain).manifest)]
    assert texts == ['left "lower" lobe; second line', 'a 5" scar', ""]


@pytest.mark.parametrize("named", [False, True])
def test_two_masks_for_one_picture_are_refused_with_both_names(plain, named):
    save(plain / "masks/mask_A1.tif", mask(2))
    if named:
        (plain / "images/a1.png").rename(plain / "images/b.png")
        write_rows(plain / "texts.csv", [{"image": "b", "mask": "a1.png"}])
    with pytest.raises(UserError, match=r"(a1|b)\.png: has 2 masks in .*masks: a1\.png and mask_A1\.tif\n  -> keep"):
        import_folder(plain)
    assert not (plain / "manifest.csv").exists()


def test_two_masks_of_one_name_that_no_picture_has_are_left_over(plain):
    save(plain / "masks/b.png", mask(2))
    save(plain / "masks/mask_b.png", mask(2))
    assert any(line.endswith("no picture for these masks: 1 (b)") for line in import_folder(plain).warnings)


def test_files_beside_the_pictures_that_are_not_read_are_counted_with_their_suffixes(plain):
    for name in ("b.GIF", "c.gif", "Thumbs.db", "notes", ".DS_Store"):
        (plain / "images" / name).write_bytes(b"something")
    (plain / "images/more").mkdir()
    said = [line for line in import_folder(plain).warnings if "images" in line]
    assert said == [f"{plain / 'images'}: files that are not read: 4 (.db, .gif, no suffix)"]


@pytest.mark.parametrize("given", ["sheet", "name"])
def test_a_patient_in_two_splits_is_refused_before_a_manifest_is_written(tmp_path, given):
    for split, name in (("train", "p1-a"), ("test", "p1-b")):
        save(tmp_path / split / f"images/{name}.png", picture(1))
    extract = {"patient": "p1"} if given == "name" else {}
    if given == "sheet":
        write_rows(tmp_path / "texts.csv", [{"image": name, "patient": "p1"} for name in ("p1-a", "p1-b")])
    with pytest.raises(UserError, match=r"patient 'p1' is in train with .*p1-a\.png and in test with .*\n  -> put all"):
        import_folder(tmp_path, ImportOptions(extract=extract))
    assert not (tmp_path / "manifest.csv").exists()


def test_what_the_manifest_holds_to_be_one_patient_or_id_an_import_does_too(tmp_path):
    for split, name in (("train", "p-a"), ("test", "p-b")):
        save(tmp_path / split / f"images/{name}.png", picture(1))
    write_rows(tmp_path / "texts.csv", [{"image": "p-a", "patient": "P 1"}, {"image": "p-b", "patient": "p  1"}])
    with pytest.raises(UserError, match=r"patient 'P 1' or 'p 1' is in train with .*p-a\.png and in test"):
        import_folder(tmp_path)
    (tmp_path / "texts.csv").unlink()
    save(tmp_path / "test/images/P-A.png", picture(1))
    with pytest.raises(UserError, match="two pictures are called 'P-A' or 'p-a'"):
        import_folder(tmp_path)
    assert not (tmp_path / "manifest.csv").exists()


def test_folders_of_pictures_that_are_not_read_are_named(plain):
    save(plain / "images/p9/series/b.png", picture(1))
    save(plain / "old/images/c.png", picture(1))
    said = "\n".join(import_folder(plain).warnings)
    assert f"{plain / 'images'}: folders in it are not read, and hold pictures: 1 (p9)" in said
    assert "folders of pictures that are not read, since no split is called so: 1 (old/images)" in said
    save(plain / "train/images/d.png", picture(1))
    save(plain / "validation/images/e.png", picture(1))
    result = import_folder(plain, ImportOptions(force=True))
    assert [record.id for record in result.records] == ["d"]
    assert "no split is called so: 3 (images, old/images, validation/images)" in "\n".join(result.warnings)


def test_a_folder_of_lvit_that_is_no_split_is_named(lvit):
    save(lvit / "Validation_Folder/img/v.png", picture(1))
    assert any(line.endswith("called so: 1 (Validation_Folder/img)") for line in import_lvit(lvit).warnings)


def test_rows_of_a_sheet_that_name_no_picture_are_counted(plain):
    write_rows(plain / "texts.csv", [{"image": "a0", "text": "here"}, {"image": " ", "text": "an orphan"}])
    assert any("without the name of a picture are left out: 1 (3)" in line for line in import_folder(plain).warnings)
