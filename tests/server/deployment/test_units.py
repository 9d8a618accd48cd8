"""What root reads is root's to change, and a hospital's client is walled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from server.deployment.provision import FLEET_CALLS
from server.deployment.templates import render
from server.study.deployment import DeploymentConfig
from sites.config import LimitsConfig

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "server" / "deployment" / "templates"
INSTALLED = ("nginx.conf", "feddusss-superlink.service", "feddusss-study.service", "feddusss-client.service")


def unit() -> str:
    return render("feddusss-client.service.j2", site="alder", study="trees")


@pytest.mark.parametrize(
    "text",
    [pytest.param(path, id=path.name) for path in (ROOT / "docs" / "deploy.md", *sorted(TEMPLATES.glob("*.j2")))],
)
def test_no_file_of_an_ordinary_account_becomes_a_part_of_roots_configuration(text):
    """A link, or a copy that keeps its owner, lets that account write what root does."""
    lines = [line for line in text.read_text(encoding="utf-8").splitlines() if "sudo" in line]
    for line in lines:
        if "/etc/" in line and any(name in line for name in INSTALLED) and " rm " not in line:
            assert "sudo install -o root -g root -m 644" in line, line
    assert not [line for line in lines if re.search(r"\bln -s", line)]


def test_the_guide_installs_each_of_these_files():
    lines = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").splitlines()
    for name in INSTALLED:
        assert any("install -o root" in line and name in line for line in lines), name


def test_the_clients_unit_bounds_memory_writes_and_core_files():
    lines = unit().splitlines()
    assert {"ProtectSystem=strict", "LimitCORE=0", "ReadWritePaths=/srv/feddusss/alder"} <= set(lines)
    (most,) = (
        int(line.removeprefix("MemoryMax=").removesuffix("G")) for line in lines if line.startswith("MemoryMax=")
    )
    kit = (TEMPLATES / "site.yaml.j2").read_text(encoding="utf-8")
    (allowed,) = re.findall(r"max_memory_gb: (\d+)", kit)
    assert LimitsConfig(max_memory_gb=int(allowed)).max_memory_gb < most


def test_what_nginx_refuses_and_holds_up_is_what_the_guide_says():
    deployment = DeploymentConfig(hosts=["example.org"], sites=["alder"])
    text = render("nginx.conf.j2", study="trees", folder="/f", deployment=deployment, fleet_calls=FLEET_CALLS)
    bodies, connections, calls = re.search(
        r"Bodies over (\d+) MiB, more than (\d+) connections of one address, .*? calls over (\d+) per second wait",
        " ".join((ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").split()),
    ).groups()
    assert f"client_max_body_size {bodies}m;" in text
    assert f"limit_conn feddusss_connections {connections};" in text and "limit_conn_status 503;" in text
    assert f"rate={calls}r/s;" in text
    assert re.search(r"limit_req zone=feddusss_requests burst=\d+;", text), "they wait: there is no nodelay"


def test_every_file_of_a_hospitals_installation_has_a_hash():
    text = (ROOT / "requirements-hospital.txt").read_text(encoding="utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.M)[1:]
    assert len(entries) > 80 and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text, "no address of a registry"
    pins = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", text, flags=re.M))
    tested = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;]+)", (ROOT / "constraints.txt").read_text(), flags=re.M))
    assert {name: pins[name] for name in pins if name in tested} == {n: v for n, v in tested.items() if n in pins}
    assert {"flwr", "torch", "pydantic", "cryptography"} <= pins.keys() and not {"pytest", "ruff"} & pins.keys()
