"""check.html shows patients' pictures: written only where asked for, it asks for nothing and runs no text as code."""

from __future__ import annotations

import re
import stat

from sites.__main__ import main
from tests.sites.faults import clean, plant_all


def test_a_page_is_written_on_request_alone(tmp_path, capsys):
    site = clean(tmp_path).write()
    main(["check", str(site)])
    assert not list(tmp_path.rglob("*.html"))
    main(["check", str(site), "--html"])
    page = tmp_path / "check.html"
    assert str(page) in capsys.readouterr().out
    assert stat.S_IMODE(page.stat().st_mode) == 0o600


def test_a_page_shows_findings_with_examples_and_requests_nothing(tmp_path):
    folder = clean(tmp_path)
    plant_all(folder)
    folder.rows[5]["text"] = "<script>alert(1)</script> one area, left"
    main(["check", str(folder.write()), "--html"])
    page = (tmp_path / "check.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert set(re.findall(r'(?:src|href)="([a-z]+):', page)) == {"data"}
    assert not re.search(r"https?://", page)
    assert page.count("<img") > 20
    for words in ("prefers-color-scheme: dark", "@media print", "max-width: 560px", "viewport"):
        assert words in page


def test_a_page_of_clean_data_says_so(tmp_path):
    main(["check", str(clean(tmp_path).write()), "--html"])
    page = (tmp_path / "check.html").read_text()
    assert "Fit to train on" in page
    assert "<p>Nothing.</p>" in page
