"""What `provision` makes: certificates that hold, keys that nobody else reads, kits without a secret."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization as s

from dusss_core.errors import UserError
from server.__main__ import main
from server.deployment import certificates
from server.deployment.accounts import account
from server.deployment.provision import provision, renew_certificate
from server.deployment.registry import load_registry
from server.study.config import load_study
from sites.config import LimitsConfig, load_site

HOSTS = ["fed.example.org", "192.0.2.7"]


@pytest.fixture
def study(tmp_path):
    """Writes a study file whose `deployment` is as given."""

    def write(**deployment) -> Path:
        path = tmp_path / "study.yaml"
        values = {"hosts": HOSTS, "sites": ["alder", "birch"], **deployment}
        path.write_text(yaml.safe_dump({"study": "trees", "deployment": values}))
        return path

    return write


@pytest.fixture
def run(study, tmp_path):
    """Runs `provision` for such a study; the coordinator's folder, and what was said."""

    def provisioned(**deployment):
        said: list[str] = []
        return provision(study(**deployment), tmp_path / "kits", say=said.append), "\n".join(said)

    return provisioned


def test_the_example_study_can_be_provisioned(tmp_path, capsys):
    assert main(["provision", "configs/study.yaml", "--out", str(tmp_path / "kits")]) == 0
    deployment = load_study("configs/study.yaml").deployment
    assert {path.stem for path in (tmp_path / "kits").glob("*.zip")} == set(deployment.sites)
    assert "coordinator.example.org" in capsys.readouterr().out


def test_a_kit_holds_no_secret(run, tmp_path):
    folder, _ = run()
    secrets = [b"PRIVATE KEY"]
    for path in (folder.authority.key, folder.server.key):
        pem = path.read_bytes()
        key = s.load_pem_private_key(pem, None)
        number = key.private_numbers().private_value
        body = b"".join(pem.splitlines()[1:-1])
        secrets += [pem, body, base64.b64decode(body), number.to_bytes(48, "big"), str(number).encode()]
    for kit in (tmp_path / "kits").glob("*.zip"):
        with zipfile.ZipFile(kit) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
            assert sorted(archive.namelist()) == [
                f"{kit.stem}/{name}" for name in ("README.md", "ca.crt", "feddusss-client.service", "site.yaml")
            ]
        for content in (kit.read_bytes(), *contents):
            assert not [secret for secret in secrets if secret in content]


def test_a_kit_is_ready_but_for_the_manifest(run, tmp_path):
    run()
    with zipfile.ZipFile(tmp_path / "kits" / "birch.zip") as archive:
        archive.extractall(tmp_path)
    site = load_site(tmp_path / "birch" / "site.yaml")
    assert site.site == "birch"
    assert site.superlink.address == "fed.example.org:8443"
    assert site.superlink.root_certificates.is_file()
    assert not site.superlink.private_key.exists()
    assert site.limits == LimitsConfig(studies=["trees"], approval=True, max_memory_gb=16, max_disk_gb=50)
    written = yaml.safe_load((tmp_path / "birch" / "site.yaml").read_text())
    assert set(written["limits"]) == set(LimitsConfig.model_fields), "every limit stands in the file, to be seen"
    fingerprint = certificates.fingerprint(tmp_path / "birch" / "ca.crt")
    assert fingerprint in (tmp_path / "birch" / "README.md").read_text()
    assert len((tmp_path / "birch" / "README.md").read_text().splitlines()) < 60


def test_kits_are_the_same_bytes_again(run, tmp_path):
    run()
    before = (tmp_path / "kits" / "alder.zip").read_bytes()
    run()
    assert (tmp_path / "kits" / "alder.zip").read_bytes() == before


def test_only_the_owner_reads_keys(run):
    folder, _ = run()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    for path in (folder.authority.key, folder.server.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in folder.path.rglob("*"):
        if path.is_file() and "PRIVATE KEY" in path.read_text():
            assert path in (folder.authority.key, folder.server.key)


def test_again_keeps_keys_and_adds_sites(run, tmp_path):
    folder, _ = run()
    before = {path: path.read_bytes() for path in (*pair(folder.authority), *pair(folder.server))}
    folder, said = run(sites=["alder", "birch", "cedar"])
    assert {path: path.read_bytes() for path in before} == before
    assert [site.name for site in load_registry(folder).sites] == ["alder", "birch", "cedar"]
    assert "cedar.zip: new site" in said and "birch.zip: new" not in said
    assert (tmp_path / "kits" / "cedar.zip").exists()
    # a name that is gone from the study file is not gone from the register
    folder, said = run(sites=["cedar"])
    assert [site.name for site in load_registry(folder).sites] == ["alder", "birch", "cedar"]
    assert "server revoke alder" in said


@pytest.mark.parametrize("key", ["sites", "sizes"])
def test_sites_of_the_kits_that_are_not_those_of_the_federation_are_named(study, tmp_path, key):
    path, said = study(sites=["alder", "birch"]), []
    for named, warned in ((["alder", "cedar"], True), (["alder", "birch"], False)):
        federation = {key: named if key == "sites" else dict.fromkeys(named, 10)}
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "federation": federation}))
        said.clear()
        provision(path, tmp_path / "kits", say=said.append)
        told = [text for text in said if f"federation.{key}" in text]
        assert [text.split(":")[1].strip() for text in told] == (["birch", "cedar"] if warned else [])


def test_new_hosts_give_a_new_certificate_under_the_same_authority(run):
    folder, _ = run()
    authority, key = folder.authority.certificate.read_bytes(), folder.server.key.read_bytes()
    folder, said = run(hosts=["new.example.org"])
    assert "the hosts have changed" in said
    assert folder.authority.certificate.read_bytes() == authority and folder.server.key.read_bytes() == key
    assert certificates.hosts_of(folder.server.certificate) == ["new.example.org"]


def test_what_a_person_changed_is_kept(run):
    folder, _ = run()
    nginx, unit = folder.path / "nginx.conf", folder.path / "feddusss-superlink.service"
    nginx.write_text("# my own\n")
    folder, said = run(port=443)
    assert nginx.read_text() == "# my own\n" and "nginx.conf: was changed by hand" in said
    assert ":443 ssl" in (folder.path / "nginx.conf.new").read_text()
    assert unit.exists() and not (folder.path / "feddusss-superlink.service.new").exists()


def test_a_text_file_follows_the_study_as_long_as_nobody_changed_it(run):
    folder, _ = run()
    folder, _ = run(port=443)
    assert ":443 ssl" in (folder.path / "nginx.conf").read_text()
    assert not list(folder.path.glob("*.new"))


def test_the_authoritys_key_may_lie_elsewhere(run):
    folder, _ = run()
    folder.authority.key.rename(folder.path.parent / "ca.key.offline")
    run(sites=["alder", "birch", "cedar"])
    with pytest.raises(UserError, match="bring it back"):
        renew_certificate(folder, 825)
    with pytest.raises(UserError, match="bring it back"):
        run(hosts=["new.example.org"])


def test_a_key_without_its_certificate_is_not_overwritten(run):
    folder, _ = run()
    folder.authority.certificate.unlink()
    before = folder.authority.key.read_bytes()
    with pytest.raises(UserError, match="put the certificate back"):
        run()
    assert folder.authority.key.read_bytes() == before


def test_a_pair_that_does_not_fit_is_found(run):
    folder, _ = run()
    folder.server.key.write_bytes(folder.authority.key.read_bytes())
    with pytest.raises(UserError, match="does not fit"):
        run()


def test_clients_trust_the_certificate_for_its_hosts_alone(run):
    folder, _ = run()
    for host in (*HOSTS, "localhost", "127.0.0.1"):
        handshake(folder.server, folder.authority.certificate, host)
    for host in ("other.example.org", "192.0.2.8"):
        with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|doesn't match"):
            handshake(folder.server, folder.authority.certificate, host)


@pytest.mark.parametrize("days", ["0", "-5", "999999999"])
def test_a_certificate_is_not_replaced_by_one_that_has_expired_or_cannot_be(run, capsys, days):
    folder, _ = run()
    before = folder.server.certificate.read_bytes()
    assert main(["renew-certificate", "--coordinator", str(folder.path), f"--days={days}"]) == 2
    assert f"--days {days}: out of range" in capsys.readouterr().err
    assert folder.server.certificate.read_bytes() == before


@pytest.mark.parametrize("new_key", [False, True])
def test_hospitals_trust_a_renewed_certificate_with_the_file_they_have(run, tmp_path, new_key):
    folder, _ = run()
    theirs = tmp_path / "ca_at_the_hospital.crt"
    theirs.write_bytes(folder.authority.certificate.read_bytes())
    key, certificate = folder.server.key.read_bytes(), folder.server.certificate.read_bytes()
    arguments = ["renew-certificate", "--coordinator", str(folder.path), *["--new-key"] * new_key]
    assert main(arguments) == 0
    assert folder.server.certificate.read_bytes() != certificate
    assert (folder.server.key.read_bytes() != key) == new_key
    for host in HOSTS:
        handshake(folder.server, theirs, host)


def test_another_authority_is_not_trusted(run, tmp_path, study):
    folder, _ = run()
    other = provision(study(), tmp_path / "other", say=lambda _: None)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(folder.server, other.authority.certificate, HOSTS[0])


def test_a_certificate_does_not_outlive_its_authority(tmp_path):
    authority = certificates.Authority(tmp_path / "ca.key", tmp_path / "ca.crt")
    server = certificates.ServerPair(tmp_path / "server.key", tmp_path / "server.crt")
    certificates.make_authority(authority, "short", days=10)
    certificates.make_server_certificate(authority, server, HOSTS, days=825)
    assert certificates.valid_until(server.certificate) == certificates.valid_until(authority.certificate)


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        ({"host": ["a"]}, "did you mean 'hosts'"),
        ({"hosts": ["a b"]}, "neither a host name nor"),
        ({"hosts": ["*.example.org"]}, "neither a host name nor"),
        ({"hosts": ["a;b"]}, "neither a host name nor"),
        ({"hosts": []}, "hosts"),
        ({"sites": ["alder", "Alder"]}, "same name"),
        ({"sites": ["../alder"]}, "sites"),
        ({"listen": ["::1"]}, "brackets"),
        ({"port": 9091}, "are the same"),
    ],
)
def test_mistakes_in_the_study_are_named(run, deployment, message):
    with pytest.raises(UserError, match=message):
        run(**deployment)


def test_a_study_without_a_deployment_is_told_so(tmp_path):
    with pytest.raises(UserError, match="no section 'deployment'"):
        provision("demo", tmp_path / "kits")


def test_another_account_leaves_kits_that_are_there_alone(run, study, tmp_path, capsys, monkeypatch):
    folder, _ = run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    owner = account()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.chdir(tmp_path)
    assert main(["provision", str(tmp_path / "study.yaml"), "--out", "kits"]) == 2
    told = capsys.readouterr().err
    assert f"{folder.path} is {owner}'s" in told and f"sudo -iu {owner}" in told
    assert f"chown -R 4711: {tmp_path / 'kits'}" in told
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_provisions_in_nobody_elses_folder_and_a_file_of_roots_is_found(run, study, tmp_path, monkeypatch):
    kits = tmp_path / "kits"
    kits.mkdir()
    os.chown(kits, 4711, -1)
    with pytest.raises(UserError, match=r"kits is 4711's.*runs as root.*\n.*sudo -iu 4711"):
        run()
    assert not list(kits.iterdir())
    os.chown(kits, 0, -1)
    folder, _ = run()
    for path in (kits, folder.path, *folder.path.rglob("*")):
        os.chown(path, 4711, -1)
    os.chown(folder.register, 0, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(UserError, match=rf"sites.json is root's.*\n.*sudo chown -R 4711: {kits}"):
        run()


def test_a_path_that_would_need_quoting_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="letters, digits"):
        provision(study(), tmp_path / "my kits")


def test_the_start_script_says_what_it_must(run):
    folder, _ = run()
    script = (folder.path / "start.sh").read_text()
    subprocess.run(["sh", "-n", str(folder.path / "start.sh")], check=True)
    for word in (
        "--host 127.0.0.1",
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--database superlink.db",
        "FLWR_TELEMETRY_ENABLED=0",
        "FLWR_DISABLE_UPDATE_CHECK=1",
        'FLWR_HOME="$here/flwr"',
    ):
        assert word in script


def test_the_studys_unit_goes_on_with_the_runs_own_settings_and_leaves_what_a_person_must_mend(run, tmp_path):
    folder, _ = run()
    unit = (folder.path / "feddusss-study.service").read_text()
    assert "Restart=on-failure" in unit and "RestartPreventExitStatus=2" in unit
    command = unit.partition("ExecStart=/bin/sh -c '")[2].partition("'\n")[0].replace("\\\n", " ")
    told = command.replace(f"exec {Path(sys.executable).parent}/python", "echo")
    begin = f"-m server run {tmp_path / 'study.yaml'} --out runs/trees --resume --coordinator {folder.path}\n"
    assert subprocess.run(["sh", "-c", told], cwd=tmp_path, capture_output=True, text=True).stdout == begin
    (tmp_path / "runs" / "trees").mkdir(parents=True)
    (tmp_path / "runs" / "trees" / "config.yaml").touch()
    resumed = begin.replace(str(tmp_path / "study.yaml"), "runs/trees/config.yaml")
    assert subprocess.run(["sh", "-c", told], cwd=tmp_path, capture_output=True, text=True).stdout == resumed


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_understands_the_units(run, tmp_path):
    folder, _ = run()
    with zipfile.ZipFile(tmp_path / "kits" / "alder.zip") as archive:
        unit = archive.read("alder/feddusss-client.service").decode()
    client = tmp_path / "feddusss-client.service"
    # the program and the account are the hospital's
    client.write_text(
        unit.replace("/srv/feddusss/app/.venv/bin/python", "/bin/true").replace("User=feddusss", "User=root")
    )
    units = [folder.path / name for name in ("feddusss-superlink.service", "feddusss-study.service")]
    for path in (*units, client):
        checked = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
        assert path.name not in checked.stderr, checked.stderr


def handshake(server: certificates.ServerPair, trusted: Path, host: str) -> None:
    """What a client that trusts `trusted` and asks for `host` makes of the server's certificate."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server.certificate, server.key)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    asking.load_verify_locations(trusted)
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            serving.wrap_socket(left, server_side=True).close()
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        asking.wrap_socket(right, server_hostname=host).close()
    finally:
        right.close()
        thread.join()


def pair(files) -> tuple[Path, Path]:
    return files.key, files.certificate
