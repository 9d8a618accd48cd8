"""What this machine has: data, text encoder, device, memory, disk, key, and whether a client runs already."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from client.state.store import client_runs
from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest
from sites.check import Finding
from sites.config import SiteConfig

SAMPLE = 12
"""Pictures that are read; `python -m sites check` reads all."""
LEAST_DISK_GB, ENOUGH_DISK_GB = 1.0, 5.0
LEAST_MEMORY_GB = 2.0
_GB = 1e9


def data(site: SiteConfig) -> Iterator[Finding]:
    """The manifest, and a few of its pictures."""
    records = read_manifest(site.data.manifest)
    n = Counter(record.split for record in records)
    splits = ", ".join(f"{n[split]} {split}" for split in ("train", "val", "test"))
    masks, texts = (sum(bool(getattr(record, name)) for record in records) for name in ("mask", "text"))
    if problem := _unreadable(_sample(records)):
        yield problem
    elif site.limits.phases and not n["train"]:
        yield Finding(
            "error", "data", "no training records", "give some records the split train, or set limits.phases: []"
        )
    else:
        yield Finding(
            "ok", "data", f"{splits}; {masks} masks, {texts} sentences (`python -m sites check` reads every picture)"
        )


def _sample(records: Sequence[Record]) -> Sequence[Record]:
    return records[:: max(1, len(records) // SAMPLE)][:SAMPLE]


def _unreadable(records: Iterable[Record]) -> Finding | None:
    from dusss_core.readers import read_raw
    from sites.prepare import load_mask

    for record in records:
        try:
            load_mask(record, read_raw(record.image).pixels.shape[:2])
        except UserError as error:
            return Finding("error", "data", f"row {record.row}: {error.problem}", error.remedy)
    return None


def text_encoders(site: SiteConfig) -> Iterator[Finding]:
    """Every text encoder that the site's limits name is whole and on this machine."""
    from dusss_core.text.encoder import locate

    for name in site.limits.text_encoders:
        try:
            encoder = locate(name)
            yield Finding("ok", "text encoder", f"{name}, sha256 {encoder.digest[:12]}…, {encoder.folder}")
        except UserError as error:
            yield Finding("error", "text encoder", error.problem, error.remedy)
    if not site.limits.text_encoders:
        yield Finding("ok", "text encoder", "none is allowed (limits.text_encoders): no phase that reads sentences")


def device(site: SiteConfig) -> Iterator[Finding]:
    """The torch device is there, and what `runtime: auto` goes by."""
    import torch

    from client.door.machine import resolve_device
    from dusss_core.runtime import has_bfloat16_instructions

    name = resolve_device(site.device)
    if not name.startswith("cuda"):
        fast = ", multiplies in bfloat16" if name == "cpu" and has_bfloat16_instructions() else ""
        yield Finding("ok", "device", f"{name}, {site.threads or torch.get_num_threads()} threads{fast}")
        return
    whole = torch.cuda.get_device_properties(name)
    most = site.limits.max_gpu_memory_gb
    text = f"{name}, {whole.name}, {whole.total_memory / _GB:.0f} GB"
    yield Finding("ok", "device", text + (f"; this site allows {most:g} (limits.max_gpu_memory_gb)" if most else ""))


def memory(site: SiteConfig) -> Iterator[Finding]:
    """Enough main memory, and not less than the site allows studies to take."""
    free = available_memory_gb()
    most = site.limits.max_memory_gb
    if free is None:
        yield Finding("ok", "memory", "cannot be told on this system")
    elif free < LEAST_MEMORY_GB:
        yield Finding(
            "error",
            "memory",
            f"{free:.1f} GB free, {LEAST_MEMORY_GB:g} are needed",
            "end other programs, or add memory",
        )
    elif most is not None and most > free:
        yield Finding(
            "warning",
            "memory",
            f"{free:.1f} GB free; this site allows {most:g} (limits.max_memory_gb)",
            "lower limits.max_memory_gb, so that training does not make the machine swap",
        )
    else:
        allowed = f"; this site allows {most:g} (limits.max_memory_gb)" if most else "; no limit is set"
        yield Finding("ok", "memory", f"{free:.1f} GB free{allowed}")


def available_memory_gb() -> float | None:
    """Main memory that programs can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / _GB for line in lines if line.startswith("MemAvailable:")), None)


def peers(site: SiteConfig) -> Iterator[Finding]:
    """The keys of the other hospitals, where updates go into secure sums."""
    from client.secure.peers import read_peers
    from feddusss.secagg.member import default_threshold

    settings = site.secure_aggregation
    if settings is None:
        return
    others = sorted(read_peers(site))
    threshold = settings.threshold or default_threshold(len(others) + 1)
    path = settings.peers
    if threshold > len(others) + 1:
        yield Finding(
            "error",
            "peers",
            f"sums of {threshold} sites or more, and there are {len(others) + 1} with this one (secure_aggregation)",
            f"lower secure_aggregation.threshold, or add keys to {path}",
        )
        return
    yield Finding(
        "ok",
        "peers",
        f"{', '.join(others)}; sums of {threshold} sites or more. Compare the keys with these hospitals: "
        f"ssh-keygen -lf {path}",
    )


def disk(site: SiteConfig) -> Iterator[Finding]:
    """state_dir can be written, is this account's own, and has room."""
    folder = _existing(site.state_dir)
    if not os.access(folder, os.W_OK | os.X_OK):
        yield Finding(
            "error",
            "disk",
            f"{folder}: this account may not write there",
            "mend the permissions, or name another state_dir",
        )
        return
    if site.state_dir.is_dir() and stat.S_IMODE(site.state_dir.stat().st_mode) & 0o077:
        yield Finding(
            "warning",
            "state_dir",
            f"{site.state_dir}: other accounts of this machine may look into it",
            f"chmod 700 {site.state_dir}",
        )
    free = shutil.disk_usage(folder).free / _GB
    text = f"{free:.1f} GB free at {site.state_dir}"
    if free < LEAST_DISK_GB:
        yield Finding("error", "disk", text, f"free some: at least {LEAST_DISK_GB:g} GB, better {ENOUGH_DISK_GB:g}")
    elif free < ENOUGH_DISK_GB:
        yield Finding("warning", "disk", text, f"free some: better {ENOUGH_DISK_GB:g} GB")
    else:
        yield Finding("ok", "disk", text)


def _existing(folder: Path) -> Path:
    return next(parent for parent in [folder, *folder.parents] if parent.exists())


def key(site: SiteConfig) -> Iterator[Finding]:
    """The private key is there, readable by this account alone, and of the right kind."""
    from client.secure.keys import public_path, read_public_key

    link = site.superlink
    if link is None or link.insecure:
        return
    if link.private_key is None:
        yield Finding(
            "error",
            "key",
            "superlink.private_key is not set",
            "name a file there, then make the key: python -m client init --site FILE",
        )
        return
    public = read_public_key(link.private_key)
    if not public.startswith("ecdsa-sha2-nistp384 "):
        yield Finding(
            "error",
            "key",
            f"{link.private_key}: not a key on the curve P-384",
            "make one: python -m client init --site FILE --force",
        )
        return
    beside = public_path(link.private_key)
    if beside.is_file() and beside.read_text(encoding="utf-8", errors="replace").split()[:2] != public.split()[:2]:
        yield Finding(
            "error",
            "key",
            f"{link.private_key}: is not the key that {beside} is the public half of",
            "put the site's own key back, or send the coordinator the public half of this one: python -m client init",
        )
        return
    yield Finding("ok", "key", f"{link.private_key}, {fingerprint(public)}")


def fingerprint(public: str) -> str:
    """As `ssh-keygen -l` shows it, for two people to compare."""
    import base64
    import hashlib

    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def running_client(site: SiteConfig) -> Iterator[Finding]:
    """No other `python -m client` holds the site."""
    if client_runs(site.state_dir):
        yield Finding("warning", "client", "is running for this site", "stop it before you start another")
    else:
        yield Finding("ok", "client", "not running")


def approvals(site: SiteConfig) -> Iterator[Finding]:
    """No study waits for a person."""
    from client.consent.book import Book

    if not site.limits.approval:
        yield Finding("ok", "approvals", "no person is asked (limits.approval)")
        return
    kept = Book(site.state_dir).all()
    waiting = sorted({one.proposal.study for one in kept if one.approval is None})
    if waiting:
        told = f"{len(waiting)} stud{'ies wait' if len(waiting) > 1 else 'y waits'} for a yes: {', '.join(waiting)}"
        yield Finding("warning", "approvals", told, "look at each with: python -m client show STUDY --site FILE")
    else:
        approved = sum(one.stands for one in kept)
        yield Finding("ok", "approvals", f"{approved} approved, none waits")


def audit_log(site: SiteConfig) -> Iterator[Finding]:
    """Its chain is whole."""
    from client.state.chain import LOG, verify

    path = site.state_dir / LOG
    if not path.exists():
        yield Finding("ok", "audit log", "none yet")
        return
    verdict = verify(path)
    if verdict.broken is None:
        yield Finding("ok", "audit log", f"{verdict.lines} line{'s' * (verdict.lines != 1)}, the chain is whole")
    else:
        yield Finding(
            "error",
            "audit log",
            f"{path}: line {verdict.broken} {verdict.problem}",
            "find out who changed it; to begin a new log, move it and audit.head away and keep them",
        )
