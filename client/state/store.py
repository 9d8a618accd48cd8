"""A site's private state on its own disk: optimizer moments, teacher, local layers, and the VLM that it was given.

    state_dir/lock                                       held while a message is worked on
    state_dir/log.txt, log.txt.1, ...                    what this site did and why it declined; never leaves
    state_dir/evaluations.json                           how many models each run has had evaluated
    state_dir/studies/STUDY/RUN_KEY/PHASE-ROUND.safetensors
    state_dir/studies/STUDY/RUN_KEY/PHASE-local-ROUND.safetensors    layers that stay here (FedBN, FedRep)
    state_dir/studies/STUDY/RUN_KEY/segment-personal-ROUND.safetensors    the site's own student, whole (`personal`)
    state_dir/studies/STUDY/RUN_KEY/PHASE-reference-ROUND.safetensors    the round's global model } federation.wire:
    state_dir/studies/STUDY/RUN_KEY/PHASE-lost-ROUND.safetensors         what updates have lost  } int8 or topk
    state_dir/studies/STUDY/RUN_KEY/PHASE-spare          an older round's state, which the next one is written over
    state_dir/studies/STUDY/RUN_KEY/vlm-SHA256.safetensors
    state_dir/studies/STUDY/RUN_KEY/text-masks-*.npy     made once per VLM and data
    state_dir/studies/STUDY/RUN_KEY/text-dice-*.npy      what they score on validation pictures
    state_dir/students/STUDY-RUN_KEY.safetensors         the finished student with this site's layers; never dropped
    state_dir/students/STUDY-RUN_KEY.vlm.safetensors     the vision-language model likewise
    state_dir/reports/STUDY-RUN_KEY.html                 this site's own page (`client.report`)

The last two rounds of a phase are kept: a coordinator that died before it saved round r asks for round r again, and
then the state of round r - 1 is needed. The local layers are kept for every round, since the final model of a phase may
be that of any round, and belongs with the layers of that round. Of the site's own students the one is kept that scored
best on the site's own validation pictures.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from client.declined import Declined
from dusss_core.errors import UserError
from dusss_core.files import (
    digest_of_tensors,
    exclusive,
    make_private,
    read_metadata,
    read_tensors,
    with_prefix,
    write_json,
    write_tensors,
)
from dusss_core.outside import shown_lines
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from torch import Tensor

EVALUATIONS = "evaluations.json"
_LOCAL, _SPARE = "local.", "-spare"
_PERSONAL = f"{Phase.SEGMENT}-personal"
KEPT_ROUNDS = 2
KEPT_RUNS = 8
"""Runs of one study whose state is kept: an older run may still be resumed."""
LOG_BYTES, LOG_FILES = 2_000_000, 5
LOCK_WAIT_S = 60.0
"""A worker whose supervisor died can live on for some seconds."""


class SiteState:
    """The private state of one site in one run of one study."""

    def __init__(self, state_dir: Path, study: str, run_key: str):
        self.folder = Path(state_dir) / "studies" / study / run_key
        self._counts, self._name = Path(state_dir) / EVALUATIONS, f"{study}/{run_key}"

    def newest(self, phase: Phase, before: int) -> tuple[dict[str, Tensor], int] | None:
        """The state of the newest round before round `before`, and that round; None if there is none.

        Usually the round just before; an older one if the site missed rounds.

        Raises:
            UserError: a file is damaged.
        """
        rounds = [round for round in self._rounds(phase) if round < before]
        if not rounds:
            return None
        layers, others = self._path(f"{phase}-local", rounds[-1]), self._path(phase, rounds[-1])
        before_it = "the site then goes on from its round before, or begins its teacher and moments anew"
        local = _read(layers, f"move it and {others.name} away: {before_it}") if layers.is_file() else {}
        kept = {f"{_LOCAL}{name}": tensor for name, tensor in local.items()}
        return {**kept, **_read(others, f"move it away: {before_it}")}, rounds[-1]

    def newest_round(self, phase: Phase, before: int) -> int | None:
        """As `newest`, without reading it."""
        return next((round for round in reversed(self._rounds(phase)) if round < before), None)

    def save(self, phase: Phase, round: int, tensors: dict[str, Tensor]) -> None:
        """Keep the state after `round`, atomically; drop rounds that no resume can need, but for the local layers.

        Of those that are dropped one stays as the room for the next state: a disk that holds the last two rounds and
        the one that is being written needs no more.

        Raises:
            UserError: the disk is full, or does not allow writing. The states before are untouched.
        """
        self._make_folder()
        if layers := with_prefix(tensors, _LOCAL):
            write_tensors(self._path(f"{phase}-local", round), layers, checked=True)
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith(_LOCAL)}
        spare = self.folder / f"{phase}{_SPARE}"
        about = {"phase": phase, "round": str(round)}
        write_tensors(self._path(phase, round), others, about, over=spare, checked=True)
        self._drop_old(phase, round, spare)
        _drop_spares(self.folder, but=spare)

    def local_layers(self, phase: Phase, round: int) -> dict[str, Tensor]:
        """The local layers that belong to the global model of `round`: those after this site's newest round up to it,
        or its first ones if it joined later; empty if there are none.

        Raises:
            UserError: the file is damaged.
        """
        rounds = self._rounds(f"{phase}-local")
        chosen = [known for known in rounds if known <= round][-1:] or rounds[:1]
        instead = "move it away: those of the round nearest to it are taken"
        return _read(self._path(f"{phase}-local", chosen[0]), instead) if chosen else {}

    def offer_personal(self, round: int, student: dict[str, Tensor], score: float) -> None:
        """Keep the site's own student after `round` if none of an earlier round scored better; of equals the later.

        What is known of later rounds, or of this one, is of rounds that are made again, and is dropped. Students of
        which a coordinator that goes back by `KEPT_ROUNDS` could make the best one again are kept beside it.

        Raises:
            UserError: as `save`.
        """
        for later in self._rounds(_PERSONAL):
            if later >= round:
                self._path(_PERSONAL, later).unlink(missing_ok=True)
        earlier = self._rounds(_PERSONAL)
        if earlier and float(read_metadata(self._path(_PERSONAL, earlier[-1])).get("score", "-inf")) > score:
            return
        self._make_folder()
        write_tensors(self._path(_PERSONAL, round), student, {"score": repr(score)}, checked=True)
        for old in [known for known in earlier if known <= round - KEPT_ROUNDS][:-1]:
            self._path(_PERSONAL, old).unlink(missing_ok=True)

    def personal(self) -> tuple[dict[str, Tensor], int] | None:
        """The site's own student, whole, and its round; None if there is none.

        Raises:
            UserError: the file is damaged.
        """
        rounds = self._rounds(_PERSONAL)
        instead = "move it away: that of an earlier round is taken, or none"
        return (_read(self._path(_PERSONAL, rounds[-1]), instead), rounds[-1]) if rounds else None

    def save_personal(self, round: int, student: dict[str, Tensor]) -> None:
        """Keep the site's own student that belongs with the final model, that of `round`, in place of any other.

        Raises:
            UserError: as `save`.
        """
        self._make_folder()
        write_tensors(self._path(_PERSONAL, round), student, checked=True)
        for other in self._rounds(_PERSONAL):
            if other != round:
                self._path(_PERSONAL, other).unlink(missing_ok=True)

    def vlm_digest(self) -> str:
        """SHA-256 of the vision-language model that is held, or ''."""
        return next((path.stem.removeprefix("vlm-") for path in sorted(self.folder.glob("vlm-*.safetensors"))), "")

    def vlm(self, digest: str) -> dict[str, Tensor] | None:
        """The vision-language model with that digest, if it is held; a damaged one is as if it were not there, and the
        coordinator, which hears that it is lacking, sends it anew."""
        try:
            tensors = read_tensors(self.folder / f"vlm-{digest}.safetensors")[0]
        except UserError:
            return None
        return tensors if digest_of_tensors(tensors) == digest else None

    def save_vlm(self, digest: str, tensors: dict[str, Tensor]) -> None:
        """Keep a vision-language model in place of any other.

        Raises:
            Declined: it is not the model that its digest names.
        """
        if digest_of_tensors(tensors) != digest:
            raise Declined("the vision-language model does not have the digest that was announced")
        self._make_folder()
        write_tensors(self.folder / f"vlm-{digest}.safetensors", tensors)
        for other in self.folder.glob("vlm-*.safetensors"):
            if other.stem != f"vlm-{digest}":
                other.unlink()

    # Where models and updates travel compressed (`feddusss.compression`).

    def reference(self, phase: Phase, digest: str) -> dict[str, Tensor] | None:
        """The global model with that digest, if one of the last rounds began with it; its numbers are not checked."""
        kind = f"{phase}-reference"
        for round in reversed(self._rounds(kind)):
            try:
                if read_metadata(self._path(kind, round)).get("digest") == digest:
                    return read_tensors(self._path(kind, round))[0]
            except UserError:  # damaged: as if it were not there
                continue
        return None

    def lost(self, phase: Phase, before: int) -> dict[str, Tensor]:
        """What this site's updates had lost after its newest round before round `before`; empty if nothing.

        Raises:
            UserError: the file is damaged.
        """
        kind = f"{phase}-lost"
        rounds = [round for round in self._rounds(kind) if round < before]
        instead = "move it away: what was lost until then is not made up for"
        return _read(self._path(kind, rounds[-1]), instead) if rounds else {}

    def save_exchanged(
        self, phase: Phase, round: int, digest: str, reference: dict[str, Tensor], lost: dict[str, Tensor]
    ) -> None:
        """Keep the global model that `round` began with, and what its update has lost.

        To be called before `save`, which tells that the round was made.

        Raises:
            UserError: as `save`.
        """
        self._make_folder()
        for kind, tensors in ((f"{phase}-lost", lost), (f"{phase}-reference", reference)):
            write_tensors(self._path(kind, round), tensors, {"digest": digest}, checked=True)
            self._drop_old(kind, round)

    # How often the run has had a model evaluated here: it outlives the run's folder.

    def evaluations(self) -> int:
        """Models that the run has had evaluated."""
        return _read_counts(self._counts).get(self._name, 0)

    def count_evaluation(self) -> None:
        """One more.

        Raises:
            UserError: disk full or no permission.
        """
        write_json(self._counts, {**_read_counts(self._counts), self._name: self.evaluations() + 1})

    def _drop_old(self, kind: str, round: int, spare: Path | None = None) -> None:
        """Drop the files of rounds that no resume can need; one of them becomes `spare`."""
        rounds = self._rounds(kind)
        kept = [r for r in rounds if r <= round][-KEPT_ROUNDS:]
        for old in set(rounds) - set(kept):
            if spare is not None:
                self._path(kind, old).replace(spare)
            else:
                self._path(kind, old).unlink(missing_ok=True)

    def _path(self, phase: Phase, round: int) -> Path:
        return self.folder / f"{phase}-{round:06d}.safetensors"

    def _rounds(self, phase: Phase) -> list[int]:
        pattern = re.compile(rf"{phase}-(\d+)\.safetensors")
        names = (path.name for path in self.folder.glob(f"{phase}-*.safetensors"))
        return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            return
        make_private(self.folder)
        runs = sorted((p for p in self.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        others = [run for run in runs if run != self.folder]
        for old in others[: -(KEPT_RUNS - 1)]:
            shutil.rmtree(old, ignore_errors=True)
        for run in others[-(KEPT_RUNS - 1) :]:
            _drop_spares(run)


def _read(path: Path, instead: str) -> dict[str, Tensor]:
    """Tensors of the site's own.

    Args:
        instead: what helps where they are damaged: nobody else has them.

    Raises:
        UserError: they are.
    """
    try:
        return read_tensors(path)[0]
    except UserError as error:
        raise UserError(error.problem, instead, error.code) from None


def _read_counts(path: Path) -> dict[str, int]:
    """
    Raises:
        UserError: the file cannot be read.
    """
    try:
        return {str(name): int(count) for name, count in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: could not be read ({type(error).__name__})",
            "mend it, or delete it: runs may then have as many models evaluated as if they were new",
        ) from None


def _drop_spares(folder: Path, but: Path | None = None) -> None:
    """Give back the room of phases and runs that are over."""
    for spare in folder.glob(f"*{_SPARE}"):
        if spare != but:
            spare.unlink(missing_ok=True)


def student_path(state_dir: Path, study: str, run_key: str) -> Path:
    """Where a site keeps the finished student of a run."""
    return Path(state_dir) / "students" / f"{study}-{run_key[:8]}.safetensors"


@contextmanager
def locked(state_dir: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the site's state for this process alone.

    Raises:
        Declined: another process still holds it after `wait_s` seconds.
        UserError: the folder cannot be made.
    """
    make_private(Path(state_dir))
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(Path(state_dir) / "lock", wait_s))
        except BlockingIOError:
            raise Declined("another process is working for this site") from None
        yield


def client_runs(state_dir: Path) -> bool:
    """Whether a `python -m client` holds the site. Changes nothing."""
    try:
        descriptor = os.open(Path(state_dir) / "client.lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def write_log(state_dir: Path, text: str) -> None:
    """Add a line to the site's own log, or a line and more behind a margin; a disk that is full does not stop the
    answer. The log is kept in `LOG_FILES` files of about `LOG_BYTES`, the older ones as log.txt.1 and so on."""
    line = f"{datetime.now().isoformat(timespec='seconds')} {shown_lines(text)}\n".encode()
    with suppress(OSError), _log_with_room(Path(state_dir) / "log.txt", len(line)) as log:
        os.write(log, line)


@contextmanager
def _log_with_room(path: Path, size: int) -> Iterator[int]:
    """The log, open and locked, with room for `size` bytes. Several processes write to it, so that the standard
    library's handler, which knows of one, would turn it over twice, or write on in an older file."""
    while True:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(log, fcntl.LOCK_EX)
            full = 0 < os.fstat(log).st_size > LOG_BYTES - size
            if _is_at(path, log):
                if not full:
                    yield log
                    return
                for number in range(LOG_FILES - 2, -1, -1):
                    with suppress(FileNotFoundError):
                        path.with_name(f"{path.name}.{number}" if number else path.name).replace(
                            path.with_name(f"{path.name}.{number + 1}")
                        )
        finally:
            os.close(log)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one at `path`: another process may have turned it over."""
    with suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False
