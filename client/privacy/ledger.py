"""What this site has spent of its privacy budget: one ledger, across phases, rounds, runs, studies and restarts.

    state_dir/privacy/ledger.json              every charge, each with the hash of the one before
    state_dir/privacy.head                     how many charges there are, and the hash of the last
    state_dir/privacy.lock                     held while the ledger is read and written
    state_dir/audit.jsonl                      a line for the opening and for each charge
    state_dir/trained_without_privacy.json     that something was released which no ledger paid for

A round is charged whole, before its first batch is drawn, and nothing is ever paid back. Ledger, head and audit log are
written in this order, and only then is trained: wherever a crash falls, the ledger tells at least what was released. A
ledger that is missing, or tells less than the head or the audit log, is an older copy or was tampered with, and stops
the site: a budget whose history is lost counts as spent. Whoever can write to `state_dir` can turn back all three;
while a run lasts, the coordinator shows that too: it has seen the number of charges in each answer, and repeats it.

It is here and not in `dusss_core`: the arithmetic is a matter of the method, the site's disk is the client's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.declined import Declined
from client.door import audit
from client.state import chain
from dusss_core.errors import UserError
from dusss_core.files import exclusive, make_private, write_json
from dusss_core.phases import Phase
from dusss_core.privacy.accounting import Budget, epsilon
from dusss_core.privacy.charge import Charge
from sites.config import PrivacyConfig

if TYPE_CHECKING:
    from client.door.request import Judged

FOLDER, FILE = "privacy", "ledger.json"
HEAD, LOCK, UNPAID = "privacy.head", "privacy.lock", "trained_without_privacy.json"
OPENED, CHARGED = "privacy ledger opened", "privacy charged"
"""Events in the audit log."""
LOCK_WAIT_S = 60.0
_FORMAT = 1
_LOST = (
    "put back its newest copy (from a backup of the whole state_dir). If there is none, this cohort's budget counts as "
    "spent: train only on patients who were never trained on, with a state_dir of their own"
)

_VOID = (
    "this site's records were trained on without differential privacy before, which no budget can take back; it takes "
    "part privately only with patients who were never trained on, and a state_dir of their own"
)


class LedgerError(UserError):
    """The ledger cannot be trusted; nothing is trained until a person has mended it."""


@dataclass(frozen=True)
class Entry:
    """One charge: a round of private training, paid for before it began."""

    number: int
    """From 1."""
    time: str
    """UTC."""
    study: str
    run: str
    """The run's key."""
    phase: Phase
    round: int
    message: str
    """SHA-256 of what was asked: the model that came, and the settings."""
    vlm: str
    """SHA-256 of the vision-language model whose masks were trained on, or ''."""
    records: int
    """The declared number of training records."""
    steps: int
    sample_rate: float
    noise_multiplier: float
    previous: str
    """SHA-256 of the entry before; of the ledger's head for the first."""

    @property
    def charge(self) -> Charge:
        return Charge(self.steps, self.sample_rate, self.noise_multiplier)

    @property
    def sha256(self) -> str:
        return _digest(asdict(self))


class Ledger:
    """The ledger of the site that keeps its state in `state_dir`.

    Args:
        privacy: the site's own settings, with an epsilon.
    """

    def __init__(self, state_dir: Path, privacy: PrivacyConfig):
        self._state_dir = Path(state_dir)
        self._privacy = privacy
        self.path = self._state_dir / FOLDER / FILE

    @property
    def budget(self) -> Budget:
        return Budget(self._privacy.epsilon, self._privacy.delta, self._privacy.records_per_patient)

    def entries(self) -> list[Entry]:
        """Every charge, oldest first; empty before first use.

        Raises:
            LedgerError: the ledger is missing, damaged, an older copy, or of another delta or cohort.
        """
        return self._read() if self.path.exists() or self._was_opened() else []

    def is_void(self) -> bool:
        """Whether something was released that no ledger paid for: then no budget can speak for this site's records.

        A student, or a vision-language model, that was trained on the same records without noise has told of them what
        it told, and so do its masks.
        """
        before = not self.path.exists() and _trained_before(self._state_dir)
        return before or (self._state_dir / UNPAID).exists()

    def charge(
        self,
        charge: Charge,
        *,
        study: str,
        run: str,
        phase: Phase,
        round: int,
        message: str,
        vlm: str = "",
        seen: int = 0,
    ) -> Entry:
        """Pay for one round. When this returns, the charge is on the disk three times over, and may be spent.

        Args:
            seen: how many charges the coordinator has seen.

        Raises:
            Declined: it would go beyond the budget (with what is spent and what is left); or the records were trained
                on without privacy before; or another process holds the ledger.
            LedgerError: as `entries`.
            UserError: the disk is full, or does not allow writing.
        """
        with self._locked():
            entries = self._open()
            if seen > len(entries):
                raise LedgerError(
                    f"{self.path}: {len(entries)} charges, and the coordinator has seen {seen}: an older copy", _LOST
                )
            self._check_budget(entries, charge)
            entry = Entry(
                number=len(entries) + 1,
                time=_now(),
                study=study,
                run=run,
                phase=phase,
                round=round,
                message=message,
                vlm=vlm,
                records=self._privacy.records or 0,
                **asdict(charge),
                previous=entries[-1].sha256 if entries else _digest(self._header()),
            )
            self._write([*entries, entry])
            audit.record(
                self._state_dir, CHARGED, number=entry.number, sha256=entry.sha256, run=run, phase=phase, round=round
            )
            return entry

    # The budget.

    def _check_budget(self, entries: list[Entry], charge: Charge) -> None:
        spent = [entry.charge for entry in entries]
        now, then = self._epsilon(spent), self._epsilon([*spent, charge])
        if not then <= self._privacy.epsilon:
            left = max(0.0, self._privacy.epsilon - now)
            raise Declined(
                f"this site's privacy budget does not allow another round: epsilon {now:.3f} of "
                f"{self._privacy.epsilon:g} is spent at delta {self._privacy.delta:g}, {left:.3f} is left, and this "
                f"round would bring it to {then:.3f}",
                abstains=True,
            )

    def _epsilon(self, charges) -> float:
        return epsilon(charges, self._privacy.delta, self._privacy.records_per_patient)

    # Reading, with every witness heard.

    def _open(self) -> list[Entry]:
        """The charges so far; at first use the ledger is made."""
        entries = self.entries()
        if self.is_void():
            raise Declined(_VOID, abstains=True)
        if not self.path.exists():
            self._write([])
            audit.record(self._state_dir, OPENED, **self._header())
        return entries

    def _was_opened(self) -> bool:
        return (self._state_dir / HEAD).exists() or self._in_audit_log() is not None

    def _read(self) -> list[Entry]:
        # a charge is written to the ledger, then to the head, then to the log; read the other way round, one that is
        # written meanwhile is in the ledger at least
        log, head = self._in_audit_log(), self._head()
        entries = self._parse()
        for witness, told in (("the audit log", log), (HEAD, head)):
            if told is None:
                continue
            count, last = told
            if count > len(entries):
                problem = f"{len(entries)} charges, and {witness} knows of {count}: it is an older copy"
                raise LedgerError(f"{self.path}: {problem}", _LOST)
            if count and entries[count - 1].sha256 != last:
                raise LedgerError(f"{self.path}: charge {count} is not the one that {witness} knows", _LOST)
        if entries and head is None and (log or (0, ""))[0] < len(entries):
            raise LedgerError(
                f"{self._state_dir / HEAD}: missing or damaged, so nothing shows that {FILE} is the newest copy", _LOST
            )
        return entries

    def _parse(self) -> list[Entry]:
        try:
            content = json.loads(self.path.read_bytes())
            header = {key: content[key] for key in ("ledger", "cohort", "delta")}
            entries = [Entry(**entry) for entry in content["entries"]]
        except FileNotFoundError:
            raise LedgerError(f"{self.path}: missing, and this site has one", _LOST) from None
        except OSError as error:
            raise LedgerError(
                f"{self.path}: could not be read: {error.strerror or error}", "mend the permissions or the disk"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise LedgerError(f"{self.path}: damaged, not a ledger of this release", _LOST) from None
        if header["ledger"] != _FORMAT:
            raise LedgerError(
                f"{self.path}: written by another release", "use the release that wrote it, or a newer one"
            )
        previous = _digest(header)
        for number, entry in enumerate(entries, start=1):
            if entry.number != number or entry.previous != previous:
                raise LedgerError(f"{self.path}: damaged at charge {number}", _LOST)
            previous = entry.sha256
        self._check_unchanged(header)
        return entries

    def _check_unchanged(self, header: dict[str, Any]) -> None:
        for key, remedy in (
            ("delta", "set it back: what was spent was agreed at that delta"),
            ("cohort", "set it back, or give the other cohort, of other patients, a state_dir of its own"),
        ):
            wanted = getattr(self._privacy, key)
            if wanted != header[key]:
                raise LedgerError(
                    f"privacy.{key} of the site's file is {wanted}, and {self.path} was begun with {header[key]}",
                    remedy,
                )

    def _head(self) -> tuple[int, str] | None:
        try:
            head = json.loads((self._state_dir / HEAD).read_bytes())
            return int(head["charges"]), str(head["last"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _in_audit_log(self) -> tuple[int, str] | None:
        """Number and hash of the last charge in the audit log; (0, '') if it tells of the opening alone."""
        found = None
        for line in _lines_about(self._state_dir / chain.LOG, b'"privacy '):
            entry = _as_json(line)
            if entry.get("event") == OPENED:
                found = found or (0, "")
            elif entry.get("event") == CHARGED:
                fields = entry.get("fields") or {}
                found = max(found or (0, ""), (int(fields.get("number", 0)), str(fields.get("sha256", ""))))
        return found

    # Writing.

    def _header(self) -> dict[str, Any]:
        return {"ledger": _FORMAT, "cohort": self._privacy.cohort, "delta": self._privacy.delta}

    def _write(self, entries: list[Entry]) -> None:
        make_private(self.path.parent)
        write_json(self.path, {**self._header(), "entries": [asdict(entry) for entry in entries]})
        head = {"charges": len(entries), "last": entries[-1].sha256 if entries else ""}
        write_json(self._state_dir / HEAD, head)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private(self._state_dir)
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(self._state_dir / LOCK, LOCK_WAIT_S))
            except BlockingIOError:
                raise Declined("another process is using this site's privacy ledger") from None
            yield


# What no ledger paid for.


def note_unpaid(state_dir: Path, study: str, run: str, phase: Phase, round: int) -> None:
    """Before a round without privacy, or figures that training records have a part in: remember for good that these
    records were trained on so.

    Raises:
        UserError: it could not be written.
    """
    path = Path(state_dir) / UNPAID
    if not path.exists():
        write_json(path, {"time": _now(), "study": study, "run": run, "phase": phase, "round": round})


def note_unpaid_by(request: Judged) -> None:
    """As `note_unpaid`, of what a message asks for."""
    note_unpaid(request.site.state_dir, request.training.study, request.run_key, request.phase, request.round)


def _trained_before(state_dir: Path) -> bool:
    """Whether an earlier release, which left no note, trained here."""
    state = re.compile(rf"({'|'.join(Phase)})(-personal)?-\d+\.safetensors")
    if any(state.fullmatch(path.name) for path in (state_dir / "studies").glob("*/*/*.safetensors")):
        return True
    answers = (_as_json(line) for line in _lines_about(state_dir / chain.LOG, b'"event":"answer"'))
    return any((answer.get("fields") or {}).get("kind") == "train" for answer in answers)


def _digest(value: dict[str, Any]) -> str:
    return chain.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _lines_about(log: Path, words: bytes) -> Iterator[bytes]:
    """Lines of the audit log that hold `words`; it can be long, and few of its lines are parsed."""
    try:
        with log.open("rb") as file:
            yield from (line for line in file if words in line)
    except FileNotFoundError:
        return


def _as_json(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
