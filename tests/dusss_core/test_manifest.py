"""A manifest is read as it stands, and every mistake in it is named with its row and a remedy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dusss_core.errors import UserError
from dusss_core.manifest import labelled_by_fraction, read_manifest, write_manifest
from tests.sites.builders import picture, rows_of, save, write_rows


def plain(record):
    return replace(record, row=0)


def test_columns_become_a_record(tmp_path):
    rows = rows_of(tmp_path, 2)
    rows[0] |= {"text": "  two\n  words ", "hospital": "Ontario", "labelled": "0"}
    rows[1] |= {"mask": "", "text": "", "patient": "", "hospital": "", "labelled": ""}
    first, second = read_manifest(write_rows(tmp_path / "m.csv", rows))
    assert (first.id, first.text, first.patient, first.split, first.row) == (
        "r0",
        "two words",
        "p0",
        "train",
        2,
    )
    assert first.image == tmp_path / "images/0.png"
    assert first.mask == tmp_path / "masks/0.png"
    assert not first.labelled
    assert first.extra == {"hospital": "Ontario"}
    assert second.mask is None
    assert not second.labelled


def test_a_mask_is_labelled_unless_it_is_said_otherwise(tmp_path):
    assert all(record.labelled for record in read_manifest(write_rows(tmp_path / "m.csv", rows_of(tmp_path, 3))))


def test_parquet_gives_the_same_records_as_csv(tmp_path):
    rows = rows_of(tmp_path, 4)
    for i, row in enumerate(rows):
        row |= {"patient": [3, None, 3, 7][i], "labelled": [True, False, True, True][i], "score": i / 2}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "m.parquet")
    for i, row in enumerate(rows):
        row |= {
            "patient": ["3", "", "3", "7"][i],
            "labelled": "1011"[i],
            "score": ["0", "0.5", "1", "1.5"][i],
        }
    assert read_manifest(tmp_path / "m.parquet") == read_manifest(write_rows(tmp_path / "m.csv", rows))


def test_excel_saves_with_a_byte_order_mark(tmp_path):
    path = write_rows(tmp_path / "m.csv", rows_of(tmp_path, 2))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [record.id for record in read_manifest(path)] == ["r0", "r1"]


def test_subject_stands_in_for_patient(tmp_path):
    rows = [{**row, "Subject": row.pop("patient")} for row in rows_of(tmp_path, 2)]
    assert {record.patient for record in read_manifest(write_rows(tmp_path / "m.csv", rows))} == {"p0"}


def test_what_is_written_is_read_back(tmp_path):
    rows = rows_of(tmp_path / "data", 3)
    rows[1] |= {"labelled": "0", "text": 'with "quotes", commas'}
    for row in rows:
        row.setdefault("labelled", "")
        row["hospital"] = "Ünal"
    records = read_manifest(write_rows(tmp_path / "data/m.csv", rows))
    for place in (tmp_path / "data/again.csv", tmp_path / "elsewhere/m.csv"):
        write_manifest(place, records)
        assert read_manifest(place) == records
    assert str(tmp_path) not in (tmp_path / "data/again.csv").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "r0"}, r"row 3: id 'r0' is already in row 2\n  -> give every record its own id"),
        ({"id": "R0"}, r"row 3: id 'R0' differs from 'r0' in row 2 in case alone\n  -> give every record its own id"),
        ({"id": ""}, r"row 3: empty id\n  -> "),
        ({"image": ""}, r"row 3: empty image\n  -> "),
        ({"image": "."}, r"row 3: image '\.' is a folder\n  -> name a file"),
        ({"mask": "./"}, r"row 3: mask '\./' is a folder\n  -> name a file"),
        (
            {"image": "images/none.png"},
            r"row 3: image file not found: .*images/none\.png\n  -> paths are relative",
        ),
        ({"mask": "masks/none.png"}, r"row 3: mask file not found: .*masks/none\.png\n  -> "),
        ({"mask": "masks"}, r"row 3: mask file not found"),
        ({"split": "trian"}, r"row 3: unknown split 'trian'\n  -> did you mean 'train'\?"),
        ({"split": "val"}, r"row 3: patient 'p0' is in val, in row 2 in train\n  -> "),
        ({"mask": "", "labelled": "1"}, r"row 3: labelled is 1, but there is no mask\n  -> "),
        ({"labelled": "maybe"}, r"row 3: labelled is 'maybe'\n  -> use 1 or 0"),
    ],
)
def test_a_mistake_is_named_with_file_row_and_remedy(tmp_path, change, said):
    rows = [{**row, "labelled": ""} for row in rows_of(tmp_path, 3)]
    rows[1] |= change
    with pytest.raises(UserError, match=r"m\.csv, " + said):
        read_manifest(write_rows(tmp_path / "m.csv", rows))


@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("P 1", "P  1"), ("p\u00a01", "P 1")])
def test_a_patient_is_not_torn_by_another_case_or_more_blanks_in_its_key(tmp_path, one, other):
    rows = rows_of(tmp_path, 3)
    rows[0]["patient"], rows[1]["patient"], rows[2]["patient"] = one, other, "P11"
    path = write_rows(tmp_path / "m.csv", rows)
    assert len(read_manifest(path)) == 3  # in one split nothing is torn
    rows[1]["split"] = "test"
    with pytest.raises(UserError) as error:
        read_manifest(write_rows(path, rows))
    assert f"row 3: patient '{other}' is in test, as '{one}', which differs" in str(error.value)
    assert "in row 2 in train" in str(error.value)
    rows[1]["patient"] = "P12"
    assert len(read_manifest(write_rows(path, rows))) == 3


def test_all_mistakes_are_named_at_once(tmp_path):
    rows = rows_of(tmp_path, 30)
    for row in rows[2:]:
        row["image"] = "gone.png"
    rows[1]["split"] = "nowhere"
    with pytest.raises(UserError) as caught:
        read_manifest(write_rows(tmp_path / "m.csv", rows))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("m.csv: 29 problems")
    assert sum(line.startswith("  row ") for line in lines) == 20
    assert lines[21] == "  and 9 more"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("id,image\n", "holds no records"),
        ("id,picture\na,b\n", "no column 'image'"),
        ("id,images\na,b\n", "no column 'image'\n  -> rename column 'images' to 'image'"),
        ("id;image\na;b\n", "not separated by commas"),
        ("id,image,image\na,b,c\n", "column 'image' stands there 2 times"),
        ("id,image\na,b,c\n", "row 2: 3 cells under 2 columns"),
        ('id,image\na,"b\n', "not a CSV file"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path, content, said):
    (tmp_path / "m.csv").write_text(content)
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match=said):
        read_manifest(tmp_path / "m.csv")


def test_other_encodings_are_named_with_their_row(tmp_path):
    (tmp_path / "m.csv").write_bytes("id,image,text\na,b,x\nc,d,é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"row 3: not UTF-8 text\n  -> save it as 'CSV UTF-8'"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize("name", ["gone.csv", "gone.parquet"])
def test_a_missing_manifest_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"{name}: no such file"):
        read_manifest(tmp_path / name)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"m\.parquet: not a Parquet file"):
        read_manifest(tmp_path / "m.parquet")


def test_label_fractions_are_exact_nested_and_independent_of_order(tmp_path):
    records = read_manifest(write_rows(tmp_path / "m.csv", rows_of(tmp_path, 20)))
    chosen = [labelled_by_fraction(records, fraction) for fraction in (0, 0.01, 0.05, 0.25, 0.5, 1)]
    assert [len(ids) for ids in chosen] == [0, 1, 1, 5, 10, 20]
    assert all(small <= large for small, large in pairwise(chosen))
    shuffled = [records[i] for i in np.random.default_rng(0).permutation(20)]
    assert labelled_by_fraction(shuffled, 0.25) == chosen[3]


def test_label_fractions_pass_over_what_may_not_be_trained_on(tmp_path):
    rows = rows_of(tmp_path, 12, splits=("train", "train", "val"))
    rows = [{**row, "labelled": "0" if i == 0 else "1"} for i, row in enumerate(rows)]
    records = read_manifest(write_rows(tmp_path / "m.csv", rows))
    assert labelled_by_fraction(records, 1) == {f"r{i}" for i in range(1, 12) if i % 3 != 2}


def test_further_sentences_stand_in_columns_of_their_own_and_come_back(tmp_path):
    save(tmp_path / "a.png", picture(0))
    rows = [
        {
            "id": "a",
            "image": "a.png",
            "text_10": "ten",
            "Text_2": " two  words",
            "text": "one",
            "text_3": "one",
            "text_1": "x",
        },
        {"id": "b", "image": "a.png", "text_10": "", "Text_2": "only", "text": "", "text_3": "", "text_1": ""},
        {"id": "c", "image": "a.png", "text_10": "", "Text_2": "", "text": "", "text_3": "", "text_1": ""},
    ]
    records = read_manifest(write_rows(tmp_path / "m.csv", rows))
    assert [record.sentences for record in records] == [("one", "two words", "ten"), ("only",), ()]
    assert records[0].extra == {"text_1": "x"}
    write_manifest(tmp_path / "again.csv", records)
    again = read_manifest(tmp_path / "again.csv")
    assert [record.sentences for record in again] == [record.sentences for record in records]
