"""Who takes part: which node is which site, what it has, and the exchange of one message with each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dusss_core.errors import UserError
from server.replies import Reply, read_reply

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

_POLL_S = 0.2
_RETRY_S = 5.0


@dataclass
class Site:
    """One site, as it introduced itself."""

    name: str
    node: int
    role: str
    """train, or evaluate for a site without training pictures."""
    counts: dict[str, int] = field(default_factory=dict)
    """n_labelled, n_unlabelled, n_val, n_test, n_text."""
    vlm: str = ""
    """Digest of the vision-language model that it holds."""


class Roster:
    """The sites of a study.

    Args:
        query: makes the content of the message that asks a node who it is.
        allowed: names that may take part, all of which are waited for; None: whoever is there.
        say: told what a person should know.
    """

    def __init__(
        self, grid: Grid, query: Callable[[], RecordDict], allowed: Iterable[str] | None, say: Callable[[str], None]
    ):
        self._grid = grid
        self._query = query
        self._allowed = None if allowed is None else set(allowed)
        self._say = say
        self._asked: dict[int, str | None] = {}
        self.sites: dict[str, Site] = {}

    def gather(self, needed: int, wait_s: float) -> None:
        """Wait until the allowed sites, or at least `needed` training sites, are there.

        Raises:
            UserError: after `wait_s` seconds, with who is missing and what was answered.
        """
        give_up = time.monotonic() + wait_s
        while True:
            self.refresh(retry=True)
            missing = sorted(self._allowed - self.sites.keys()) if self._allowed is not None else []
            trainers = sum(site.role == "train" for site in self.sites.values())
            if not missing and trainers >= needed:
                return
            if time.monotonic() >= give_up:
                raise UserError(
                    self._absence(missing, trainers, needed),
                    "start these sites, or lower federation.min_sites, or mend federation.sites",
                )
            time.sleep(min(_RETRY_S, max(0.0, give_up - time.monotonic())))

    def refresh(self, *, retry: bool = False, timeout: float = 120.0) -> None:
        """Ask nodes that are new who they are; with `retry` also those that could not say."""
        nodes = set(self._grid.get_node_ids())
        again = {node for node, problem in self._asked.items() if problem is not None} if retry else set()
        unknown = sorted(node for node in nodes if node not in self._asked or node in again)
        if not unknown:
            return
        messages = {node: _message(self._query(), node, "query") for node in unknown}
        for node, message in exchange(self._grid, messages, timeout).items():
            reply = read_reply(f"node {node}", message)
            self._asked[node] = self._enter(node, reply, nodes)
            if self._asked[node] is not None and not reply.abstains:
                self._say(f"node {node} takes no part: {self._asked[node]}")

    def training(self) -> list[Site]:
        """Sites that train, by name."""
        return sorted((site for site in self.sites.values() if site.role == "train"), key=lambda site: site.name)

    def all(self) -> list[Site]:
        """All sites, by name."""
        return sorted(self.sites.values(), key=lambda site: site.name)

    def ask(
        self,
        kind: str,
        contents: Mapping[str, RecordDict],
        timeout: float,
        on_start: Callable[[str], None] | None = None,
        on_reply: Callable[[str, Message], None] | None = None,
    ) -> dict[str, Message | None]:
        """Send each site its message and wait for the answers.

        Returns:
            The answer of each site; None where none came in time.
        """
        nodes = {self.sites[name].node: name for name in contents}
        messages = {node: _message(contents[name], node, kind) for node, name in nodes.items()}
        answers = exchange(
            self._grid,
            messages,
            timeout,
            on_start=(lambda node: on_start(nodes[node])) if on_start else None,
            on_reply=(lambda node, message: on_reply(nodes[node], message)) if on_reply else None,
        )
        return {nodes[node]: message for node, message in answers.items()}

    def _enter(self, node: int, reply: Reply, nodes: set[int]) -> str | None:
        """Add the site that answered; the reason if it cannot be."""
        if not reply.accepted:
            return reply.reason
        name = reply.texts.get("site", "")
        if not name:
            return "it did not say which site it is"
        if self._allowed is not None and name not in self._allowed:
            return f"site '{name}' is not in federation.sites"
        known = self.sites.get(name)
        if known is not None and known.node != node and known.node in nodes:
            return f"site '{name}' is already there as node {known.node}"
        counts = {key: int(value) for key, value in reply.metrics.items()}
        self.sites[name] = Site(name, node, reply.texts.get("role", "train"), counts, reply.texts.get("vlm", ""))
        return None

    def _absence(self, missing: list[str], trainers: int, needed: int) -> str:
        what = (
            f"sites that are not there: {', '.join(missing)}"
            if missing
            else (f"{trainers} training site{'s' * (trainers != 1)} there, at least {needed} needed")
        )
        problems = [f"  node {node}: {problem}" for node, problem in sorted(self._asked.items()) if problem]
        return "\n".join([what, *problems])


def exchange(
    grid: Grid,
    messages: Mapping[int, Message],
    timeout: float,
    on_start: Callable[[int], None] | None = None,
    on_reply: Callable[[int, Message], None] | None = None,
) -> dict[int, Message | None]:
    """Push a message to each node and pull the answers as they come.

    Whose answer it is, is told by the message that it answers: a dead node's error reply does not name the node.
    """
    answers: dict[int, Message | None] = dict.fromkeys(messages)
    pending: dict[str, int] = {}

    def pull() -> None:
        for reply in grid.pull_messages(list(pending)) if pending else ():
            node = pending.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                answers[node] = reply
                if on_reply:
                    on_reply(node, reply)

    for node, message in messages.items():
        if on_start:
            on_start(node)
        # one by one: in this process the site works during the push, and answers before the next one starts
        pending.update(dict.fromkeys(grid.push_messages([message]), node))
        pull()
    give_up = time.monotonic() + timeout
    while pending and time.monotonic() < give_up:
        time.sleep(_POLL_S)
        pull()
    return answers


def _message(content: RecordDict, node: int, kind: str) -> Message:
    from flwr.app import Message

    return Message(content, node, kind)
