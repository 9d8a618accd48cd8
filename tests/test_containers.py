"""What is in deploy/: containers that name only what is there, and an installation that checks every file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from feddusss.command.table import COMMANDS
from server.study.config import load_study

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "containers"
CONTAINERFILES = sorted(FOLDER.glob("*.Containerfile"))
INSTRUCTIONS = ["FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"]
PROGRAMS = {"python", "sh", "feddusss", "/trial/coordinator/kits/coordinator/start.sh"}
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))


def instructions(file: Path) -> list[tuple[str, str]]:
    """(name, rest) of each, lines that go on joined."""
    text = re.sub(r"\\\n\s*", " ", file.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def locked(name: str) -> dict[str, str]:
    """Release -> all that the file says of it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {part.split()[0]: part for part in re.split(r"(?m)^(?=[a-z0-9].*==)", text) if not part.startswith("#")}


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: file.stem)
class TestContainerfile:
    def test_what_it_copies_is_there_and_reaches_the_builder(self, file):
        admitted = [line[1:] for line in (ROOT / ".containerignore").read_text().splitlines() if line.startswith("!")]
        for name, rest in instructions(file):
            assert name in INSTRUCTIONS, name
            if name == "COPY" and not rest.startswith("--from="):
                for source in rest.split()[:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(Path(source).match(pattern) for pattern in admitted), source

    def test_it_copies_every_package_of_the_wheel(self, file):
        copied = {word for name, rest in instructions(file) if name == "COPY" for word in rest.split()[:-1]}
        assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks", "docsite"} <= copied

    def test_what_it_starts_is_a_command_that_there_is(self, file):
        for name, rest in instructions(file):
            if name in ("CMD", "HEALTHCHECK"):
                words = json.loads(rest[rest.index("[") :])
                assert words[0] in PROGRAMS
                for command in re.findall(r"feddusss (\w+)", " ".join(words)):
                    assert command in COMMANDS

    def test_it_runs_as_no_root_and_installs_what_is_pinned(self, file):
        said = instructions(file)
        assert ("USER", "10001:10001") in said and said[-1][0] == "CMD"
        assert all(re.search(r":[\w.-]*\d", rest) for name, rest in said if name == "FROM")
        [installed] = [rest for name, rest in said if name == "RUN" and "install" in rest]
        requirements = re.search(r"deploy/install\.sh \S+ (\S+) \.", installed)[1]
        assert all("--hash=sha256:" in part for part in locked(requirements).values())


def test_a_coordinators_releases_are_a_hospitals_without_what_reads_pictures():
    hospital, coordinator = locked("requirements-hospital.txt"), locked("requirements-coordinator.txt")
    left_out = {name.split("==")[0] for name in hospital.keys() - coordinator.keys()}
    assert left_out == {
        "et-xmlfile", "highdicom", "monai", "nibabel", "openpyxl", "pyarrow", "pydicom", "pyjpegls"
    }  # fmt: skip
    assert all(hospital[name] == part for name, part in coordinator.items())


@pytest.mark.skipif(shutil.which("awk") is None, reason="no awk")
@pytest.mark.parametrize("index", ["", "https://example.org/cpu"])
def test_without_cuda_torch_alone_comes_from_the_other_index_and_all_else_is_checked(tmp_path, index):
    python, told = tmp_path / "python", tmp_path / "told"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\n'
        f'while [ $# -gt 1 ]; do [ "$1" = -r ] && cat "$2" > {tmp_path}/installed; shift; done\n'
    )
    python.chmod(0o755)
    environment = {**os.environ, "TORCH_INDEX": index}
    script = [ROOT / "deploy" / "install.sh", python, "requirements-hospital.txt", "-e", "."]
    subprocess.run(["sh", *script], cwd=ROOT, env=environment, check=True)
    lines = told.read_text().splitlines()
    names = {line.split("==")[0] for line in (tmp_path / "installed").read_text().splitlines() if "==" in line}
    cuda = {name for name in names if re.match(r"(nvidia|cuda)-|triton|torch", name)}
    assert lines[-1].endswith("--no-deps --no-build-isolation -e .")
    if index:
        assert f"--index-url {index} torch==" in lines[0] and "torchvision==" in lines[0] and len(lines) == 3
        assert not cuda and "numpy" in names
    else:
        assert len(lines) == 2 and {"torch", "triton", "nvidia-cublas"} <= cuda
    assert "--require-hashes" in lines[-2] and "--no-deps" in lines[-2]


# compose.yaml


def test_every_service_is_without_rights_and_its_root_cannot_be_written():
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] and service["user"] == "10001:10001" and service["cap_drop"] == ["ALL"], name
        assert "privileged" not in service and "ports" not in service
        if "build" in service:
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service.get("depends_on", {}).keys() <= COMPOSE["services"].keys()


def test_a_site_reads_its_pictures_alone_and_knows_the_coordinator_by_its_certificate():
    study = load_study(str(FOLDER / "study.yaml"))
    sites = {name for name in COMPOSE["services"] if name.startswith("site")}
    assert sites == set(study.deployment.sites) == set(study.federation.sites)
    assert study.deployment.hosts == ["coordinator"] and "coordinator" in COMPOSE["services"]
    for site in sites:
        assert f"./trial/{site}/data:/site/data:ro" in COMPOSE["services"][site]["volumes"]
        assert not any("coordinator" in volume for volume in COMPOSE["services"][site]["volumes"])


def test_both_builders_ignore_the_same():
    assert (ROOT / ".containerignore").read_bytes() == (ROOT / ".dockerignore").read_bytes()


@pytest.mark.slow
def test_what_prepares_the_trial_makes_every_folder_that_the_containers_mount(tmp_path):
    """Here, without containers: the same script, with the same commands."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "feddusss"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m feddusss "$@"\n')
    command.chmod(0o755)
    trial = tmp_path / "trial"
    trial.mkdir()
    for name in ("study.yaml", "hospitals.yaml"):
        shutil.copy(FOLDER / name, trial)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["sh", FOLDER / "prepare.sh", trial], env={**os.environ, "PATH": path}, check=True, capture_output=True
    )
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            assert (tmp_path / volume.split(":")[0]).exists() or (FOLDER / volume.split(":")[0]).is_file(), volume
    [key] = (trial / "site_a").glob("*.key")
    assert key.stat().st_mode & 0o077 == 0
    assert "listen 0.0.0.0:8443 ssl" in (trial / "door" / "feddusss.conf").read_text()
