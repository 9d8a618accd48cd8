"""Who takes part: which node is which site, what it has, and the exchange of one message with each."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from server.rounds.exchange import POLL_S, PUSHED_TOGETHER, batches, exchange, forget, message_to, pause
from server.rounds.figures import COUNTS
from server.rounds.replies import Reply, read_reply

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

ROLES = ("train", "evaluate")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""As in a site's own file."""
_LOOK_S = 2.0
"""Between two looks at who is connected, while sites are waited for."""
_SAY_S = 30.0
"""Between two lines that say who is missing."""
_ANSWER_S = 120.0
"""How long a study that starts waits for a node that was asked who it is."""
_JOIN_S = 10.0
"""How long a round waits for a node that has just come to say who it is; after that it joins a later round."""
_AGAIN_S = 30.0
"""After which a node that could not say who it is, is asked again."""


@dataclass
class Site:
    """One site, as it introduced itself."""

    name: str
    node: int
    role: str
    """train, or evaluate for a site without training pictures."""
    counts: dict[str, int] = field(default_factory=dict)
    """n_labelled, n_unlabelled, n_val, n_test, n_text, n_labelled_text; of a site that trains with differential privacy
    n_records alone, its declared number of training pictures."""
    size: int | None = None
    """Most training pictures that it counts with, as the study file declares; None: as many as it says."""
    vlm: str = ""
    """Digest of the vision-language model that it holds."""
    reference: str | None = None
    """Under a wire that compresses: digest of the newest model that it is known to hold; None: not known."""

    @property
    def pictures(self) -> int:
        """Training pictures that it said it has."""
        return sum(self.counts.get(name, 0) for name in ("n_labelled", "n_unlabelled", "n_records"))

    def weight(self, examples: float) -> float:
        """What `examples` training pictures count, or that many validation pictures: no more than its declared size."""
        return examples if self.size is None else min(examples, self.size)


@dataclass
class _Asked:
    """A node that was asked who it is."""

    at: float
    problem: str | None = None
    """Why it is no site of this study; None: it is one, or has not answered."""
    for_good: bool = False


class Roster:
    """The sites of a study.

    Args:
        query: makes the content of the message that asks a node who it is.
        allowed: names that may take part, all of which are waited for; None: whoever is there.
        say: told what a person should know.
        sizes: most training pictures that each site counts with; a site that is not named there takes no part. None: as
            many as it says.
        busy_s: how many seconds a site that is asked for something may be busy with another study, beside its own time.
        outside: told of a node that is connected and takes no part, and why; '' when that is over.
    """

    def __init__(
        self,
        grid: Grid,
        query: Callable[[], RecordDict],
        allowed: Iterable[str] | None,
        say: Callable[[str], None],
        sizes: Mapping[str, int] | None = None,
        busy_s: float = 0.0,
        outside: Callable[[str, str], None] = lambda node, why: None,
    ):
        self._sizes = sizes
        self._busy_s = busy_s
        self._grid = grid
        self._query = query
        self._allowed = None if allowed is None else set(allowed)
        self._say = say
        self._asked: dict[int, _Asked] = {}
        self._told: dict[int, str | None] = {}
        self._outside = outside
        self._shown: dict[int, tuple[str, str]] = {}
        """What `outside` was told last of a node."""
        self._queries: dict[str, int] = {}
        self._nodes: dict[int, str] = {}
        self.sites: dict[str, Site] = {}

    def gather(self, needed: int, wait_s: float, expected: Iterable[str] = ()) -> None:
        """Wait until the allowed sites, or at least `needed` training sites, are there.

        Args:
            expected: where all may take part: sites that are waited for a while, and then done without.

        Raises:
            UserError: after `wait_s` seconds, with who is missing and what was answered.
        """
        began = time.monotonic()

        def missing() -> list[str]:
            wanted = self._allowed if self._allowed is not None else expected
            return sorted(set(wanted) - self._connected_names())

        def there() -> bool:
            if self._allowed is not None:
                return not missing() and self._trainers() >= needed
            patient = time.monotonic() - began < _ANSWER_S
            return self._trainers() >= needed and not (patient and (missing() or self._queries))

        def told() -> str:
            return self._absence(missing(), self._trainers(), needed)

        if not self._wait(there, wait_s, told) and (self._allowed is not None or self._trainers() < needed):
            raise UserError(
                told(),
                "start these sites, or have the study approved there; or lower federation.min_sites, or mend "
                "federation.sites",
            )

    def wait_for(self, needed: int, wait_s: float, names: Container[str] | None = None) -> bool:
        """Wait until `needed` training sites (of `names`, if given) are connected; whether they are after `wait_s`."""

        def connected() -> list[str]:
            return [site.name for site in self.training() if names is None or site.name in names]

        def told() -> str:
            away = sorted(self.sites.keys() - self._connected_names())
            return self._absence(away, len(connected()), needed)

        return self._wait(lambda: len(connected()) >= needed, wait_s, told)

    def refresh(self, wait_s: float = _JOIN_S) -> None:
        """See who is connected, ask nodes that are new who they are, and enter those that have answered.

        Args:
            wait_s: for the answers of nodes that are asked now.
        """
        self._nodes = {info.node_id: info.name for info in self._grid.get_nodes()}
        for node in self._shown.keys() - self._nodes.keys():
            self._show(node, "")
        give_up = time.monotonic() + wait_s
        asked = self._ask_nodes()
        self._hear()
        while asked & set(self._queries.values()) and time.monotonic() < give_up:
            pause(self._grid, POLL_S)
            self._hear()

    def training(self) -> list[Site]:
        """Connected sites that train, by name."""
        return [site for site in self.all() if site.role == "train"]

    def all(self) -> list[Site]:
        """All connected sites, by name."""
        connected = (site for site in self.sites.values() if site.node in self._nodes)
        return sorted(connected, key=lambda site: site.name)

    def away(self) -> list[Site]:
        """Training sites that took part before and are not connected now, by name."""
        away = (site for site in self.sites.values() if site.role == "train" and site.node not in self._nodes)
        return sorted(away, key=lambda site: site.name)

    def ask_again(self, name: str) -> None:
        """At the next `refresh`, ask a site once more who it is and what it has."""
        self._asked.pop(self.sites[name].node, None)

    def ask(
        self,
        kind: str,
        contents: Mapping[str, RecordDict],
        timeout: float,
        on_reply: Callable[[str, Message], None],
        on_start: Callable[[str], None] | None = None,
        at_once: int = PUSHED_TOGETHER,
        on_busy: Callable[[str, str], None] | None = None,
    ) -> dict[str, str]:
        """Send each site its message and wait for the answers, which nobody keeps but `on_reply`.

        Args:
            at_once: how many answers may be in memory together.
            on_busy: told when a site says that it is busy with another study, and with none ('') any more.

        Returns:
            The sites of which none came in time, and why, as far as they have told.
        """
        nodes = {self.sites[name].node: name for name in contents}
        silent = exchange(
            self._grid,
            {node: message_to(contents[name], node, kind) for node, name in nodes.items()},
            timeout,
            on_reply=lambda node, message: on_reply(nodes[node], message),
            on_start=(lambda node: on_start(nodes[node])) if on_start else None,
            at_once=at_once,
            busy_s=self._busy_s,
            on_busy=(lambda node, study: on_busy(nodes[node], study)) if on_busy else None,
        )
        return {nodes[node]: why for node, why in silent.items()}

    # Waiting and asking.

    def _wait(self, satisfied: Callable[[], bool], wait_s: float, told: Callable[[], str]) -> bool:
        began = said = time.monotonic()
        while True:
            # with no time to wait, at least those that are there can answer
            self.refresh(_ANSWER_S if not self.sites else _JOIN_S)
            if satisfied():
                return True
            now = time.monotonic()
            if now - began >= wait_s:
                return False
            if now - said >= _SAY_S:
                said = now
                self._say(f"waiting for sites, {wait_s - (now - began):.0f} s at most: {told()}")
            time.sleep(min(_LOOK_S, max(0.0, began + wait_s - now)))

    def _ask_nodes(self) -> set[int]:
        """Ask the nodes that have not said who they are; returns those that were asked just now."""
        now = time.monotonic()
        due = [node for node in sorted(self._nodes) if self._is_due(node, now)]
        late = [message_id for message_id, node in self._queries.items() if node in due]
        forget(self._grid, late)
        self._queries = {message_id: node for message_id, node in self._queries.items() if message_id not in late}
        query = self._query() if due else None
        for some in batches(due, PUSHED_TOGETHER):
            pushed = self._grid.push_messages([message_to(query, node, "query") for node in some])
            for node, message_id in zip(some, pushed, strict=False):  # none if they were too large
                if message_id:
                    self._queries[message_id] = node
                    self._asked[node] = _Asked(now)
        return set(due)

    def _is_due(self, node: int, now: float) -> bool:
        asked = self._asked.get(node)
        if asked is None:
            return True
        if node in self._queries.values():  # what answers may have been killed with the question in its hands
            return now - asked.at >= _ANSWER_S
        return asked.problem is not None and not asked.for_good and now - asked.at >= _AGAIN_S

    def _hear(self) -> None:
        for message in self._grid.pull_messages(list(self._queries)) if self._queries else ():
            node = self._queries.pop(message.metadata.reply_to_message_id, None)
            if node is None:
                continue
            reply = read_reply(f"node {node}", message)
            problem, for_good = self._enter(node, reply)
            self._asked[node] = _Asked(time.monotonic(), problem, for_good)
            # a node is asked again and again, and a person is told once
            if problem is not None and not reply.abstains and self._told.get(node) != problem:
                self._say(f"{self._title(node)} takes no part: {problem}")
            self._told[node] = problem
            self._show(node, "" if problem is None or reply.abstains else problem)

    def _enter(self, node: int, reply: Reply) -> tuple[str | None, bool]:
        """Add the site that answered; else the reason why it cannot be, and whether that is so for good."""
        if not reply.accepted:
            return reply.reason, reply.abstains
        name, registered = reply.texts.get("site", ""), self._nodes.get(node, "")
        if not name:
            return "it did not say which site it is", True
        if not _NAME.fullmatch(name):
            return f"it says that it is {name!r}, which is no name of a site", True
        if registered and registered != name:
            return f"its key is registered for '{registered}', and it says that it is '{name}'", True
        if self._allowed is not None and name not in self._allowed:
            return f"site '{name}' is not in federation.sites", True
        if self._sizes is not None and name not in self._sizes:
            return f"site '{name}' is not in federation.sizes", True
        role = reply.texts.get("role", "train")
        if role not in ROLES:
            return f"it says that its role is {role!r}, which is none of {', '.join(ROLES)}", True
        known = self.sites.get(name)
        if known is not None and known.node != node:
            if known.node in self._nodes:
                return f"site '{name}' is already there as node {known.node}", False
            self._say(f"site '{name}' is back as node {node}")
        counts = {key: int(value) for key, value in reply.metrics.items() if key in COUNTS}
        size = None if self._sizes is None else self._sizes[name]
        site = self.sites[name] = Site(name, node, role, counts, size, reply.texts.get("vlm", ""))
        if size is not None and site.pictures > size:
            self._say(
                f"site '{name}' says that it has {site.pictures} training pictures; it counts with {size}, as "
                "federation.sizes declares"
            )
        return None, False

    # What a person is told.

    def _show(self, node: int, why: str) -> None:
        title, before = self._shown.get(node, (self._title(node), ""))
        if why != before:
            self._shown[node] = title, why
            self._outside(title, why)

    def _connected_names(self) -> set[str]:
        return {site.name for site in self.all()}

    def _trainers(self) -> int:
        return len(self.training())

    def _title(self, node: int) -> str:
        name = self._nodes.get(node)
        return f"node {node} ({name})" if name else f"node {node}"

    def _absence(self, missing: list[str], trainers: int, needed: int) -> str:
        what = (
            f"sites that are not there: {', '.join(missing)}"
            if missing
            else (f"{trainers} training site{'s' * (trainers != 1)} there, at least {needed} needed")
        )
        silent = [f"  {self._title(node)}: has not said yet who it is" for node in sorted(set(self._queries.values()))]
        problems = [f"  {self._title(n)}: {asked.problem}" for n, asked in sorted(self._asked.items()) if asked.problem]
        return "\n".join([what, *silent, *problems])
