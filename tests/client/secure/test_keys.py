"""A site makes its own key, which stays on its machine."""

from __future__ import annotations

import shutil
import stat
import subprocess

import pytest

from client.__main__ import main
from client.secure.keys import make_key, read_public_key
from dusss_core.errors import UserError


@pytest.fixture
def site_file(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text(
        "site: alder\ndata: {manifest: manifest.csv}\nstate_dir: state\n"
        "superlink: {address: 'example.org:443', private_key: keys/site.key}\n"
    )
    return file


def test_init_prints_the_public_half_of_a_private_key_that_only_the_owner_reads(site_file, capsys):
    assert main(["init", "--site", str(site_file)]) == 0
    key = site_file.parent / "keys" / "site.key"
    line = capsys.readouterr().out.strip()
    assert line.startswith("ecdsa-sha2-nistp384 ") and line.endswith(" alder")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert (key.parent / "site.key.pub").read_text().strip() == line
    assert line.startswith(read_public_key(key))


def test_a_key_is_never_overwritten(site_file, capsys):
    main(["init", "--site", str(site_file)])
    key = site_file.parent / "keys" / "site.key"
    before = key.read_bytes()
    assert main(["init", "--site", str(site_file)]) == 2
    assert "--force" in capsys.readouterr().err
    assert key.read_bytes() == before


def test_force_keeps_the_old_key_beside_the_new_one(site_file):
    main(["init", "--site", str(site_file)])
    key = site_file.parent / "keys" / "site.key"
    before = key.read_bytes()
    assert main(["init", "--site", str(site_file), "--force"]) == 0
    assert key.read_bytes() != before
    kept = [path for path in key.parent.glob("site.key.2*") if ".pub" not in path.name]
    assert [path.read_bytes() for path in kept] == [before]
    assert stat.S_IMODE(kept[0].stat().st_mode) == 0o600


def test_flower_reads_the_key(tmp_path):
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    make_key(tmp_path / "key", "alder")
    assert load_ssh_private_key((tmp_path / "key").read_bytes(), None).curve.name == "secp384r1"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_ssh_keygen_finds_the_same_public_key(tmp_path):
    line = make_key(tmp_path / "key", "alder")
    theirs = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "key"], capture_output=True, text=True, check=True)
    assert theirs.stdout.split()[:2] == line.split()[:2]


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [(b"", 0o600, "OpenSSH"), (b"-----BEGIN PRIVATE KEY-----", 0o600, "OpenSSH"), (None, 0o640, "chmod 600")],
)
def test_a_key_that_cannot_be_used_is_refused(tmp_path, content, mode, words):
    path = tmp_path / "key"
    if content is None:
        make_key(path, "alder")
    else:
        path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(UserError, match=words):
        read_public_key(path)
