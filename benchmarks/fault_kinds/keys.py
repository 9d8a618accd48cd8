"""Faults of keys, certificates and code."""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import patch

from benchmarks.fault_gateway import gateway
from benchmarks.fault_kinds.table import Outcome, fault, resumed, without_victim
from benchmarks.fault_lab import Lab, NotSurvived, now, recovery
from feddusss import flower
from tests.deployment import Client, wait_until


@fault("wrong key")
def wrong_key(lab: Lab, name: str) -> Outcome:
    lab.victim.stop()
    folder = lab.folder / name / "cedar"
    folder.mkdir(parents=True)
    text = lab.victim.site_file.read_text().replace("manifest.csv", str(lab.victim.folder / "manifest.csv"))
    with Client(folder, lab.link, register=False) as stranger:
        stranger.site_file.write_text(text)
        with lab.study(name) as out:
            lab.end_of_round(out, 1)
            with lab.rounds_held():
                stranger.start()
                stranger.wait_for("does not know this site's key", 300)
                stranger.stop()
                since = now()
            lab.start_victim()
    return Outcome("the stranger is never let in, and is told why", recovery(out, since))


@fault("revoked key, and a new one in its place")
def revoked_key(lab: Lab, name: str) -> Outcome:
    from client.secure.keys import make_key, public_path

    with lab.study(name) as out:
        lab.end_of_round(out, 1)
        with lab.link.control() as control:
            node = next(node.id for node in control.nodes() if node.name == "cedar")
            control.unregister(node)
        lab.end_of_round(out, 3)
        with lab.rounds_held():
            lab.victim.wait_for("no longer accepts this site's key|does not know this site's key", 300)
            lab.victim.stop()
            make_key(lab.victim.key, "cedar", force=True)
            lab.link.register("cedar", public_path(lab.victim.key))
            since = now()
        lab.start_victim()
    return without_victim(out, since)


@fault("expired certificate, renewed")
def expired_certificate(lab: Lab, name: str) -> Outcome:
    from server.deployment import certificates

    files = lab.link.folder
    authority = certificates.Authority(files / "ca.key", files / "ca.crt")
    pair = certificates.ServerPair(files / "server.key", files / "server.crt")
    valid = pair.certificate.read_bytes()
    out, process = lab.interrupted_study(name)
    try:
        lab.end_of_round(out, 1)
        lab.link.kill()
        with patch.object(certificates, "_CLOCK_SKEW", timedelta(days=2)):
            certificates.make_server_certificate(authority, pair, (), -1)
        try:
            lab.link.start()
            raise NotSurvived("the SuperLink runs with a certificate that has expired")
        except AssertionError as ended:
            if "renew-certificate" not in str(ended):
                raise
        with gateway(lab.link.port, pair.certificate, pair.key):
            lab.victim.stop()
            lab.victim.start()
            lab.victim.wait_for("it has expired", 180)
    finally:
        process.end()
        lab.link.kill()
        pair.certificate.write_bytes(valid)
        lab.link.start()
    since = now()
    return resumed(lab, name, out, since, "the rounds until the certificate is renewed")


@fault("foreign app: a bundle that is not the release's")
def foreign_app(lab: Lab, name: str) -> Outcome:
    from feddusss.bundle import write_app

    app = write_app(lab.folder / name / "app")
    # a study that asks the sites: without one the coordinator's part ends before any of them hears of the bundle
    named = (
        (app / "pyproject.toml").read_text(encoding="utf-8").replace('study = ""', f'study = "{lab.there.study_file}"')
    )
    named = named.replace('out = ""', f'out = "{lab.folder / name / "foreign"}"')
    (app / "pyproject.toml").write_text(named, encoding="utf-8")
    (app / "client").mkdir()
    (app / "client" / "app.py").write_text("raise SystemExit('this code must never run')\n")
    lab.link.submit(flower.build_fab_from_disk(app))
    wait_until(lambda: "refused" in lab.victim.output, 120, "the client to refuse it")
    with lab.study(name) as out:
        pass
    lab.check_equal(out)
    return Outcome("nothing; every site refuses it before it is unpacked", None, True)
