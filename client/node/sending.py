"""An answer is sent until all of it has arrived, also over a line that breaks in the middle.

Flower's SuperNode tries most requests again until the line is back. But where the line took the *reply* to a request
with it, the SuperLink has the object already, refuses it, and Flower gives the whole answer up and deletes it. Here the
answer is announced anew: the SuperLink says which objects it lacks, and these are sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from feddusss import flower

WAITS_S = (1.0, 2.0, 5.0, 10.0, *[15.0] * 12)
"""Before each further try, and from the first on once more of the answer has come: for as long as the SuperLink keeps
an answer of which nothing more comes, three minutes. Flower waits for the line within a try, but not where TLS is cut
short: it takes that for a wrong certificate."""
_LOOK_S = 0.5
_REFUSED = range(400, 500)
"""Answers of HTTP that another try does not change."""


class Abandoned(Exception):
    """The worker ended before all of its answer was here."""


def until_it_arrives(
    send: Callable, push_object: Callable, store: Any, is_abandoned: Callable[[str], bool] = lambda name: False
) -> Callable:
    """Flower's `send`, which announces an answer, as one that also sends all of it; nothing is left to be pushed.

    Args:
        send: (message, tree of objects, seconds) -> names of the objects that are lacking, and the session's name.
        push_object: (run, session, name, content) sends one.
        store: where the contents are.
        is_abandoned: whether the worker that answers the message of this name has ended without having done so.
    """

    def send_all(message: Any, tree: Any, seconds: float) -> tuple[set[str], str]:
        waits, least = iter(WAITS_S), len(_names(tree)) + 1

        def ended() -> bool:
            return is_abandoned(message.metadata.reply_to_message_id)

        while True:
            try:
                lacking, session = send(message, tree, seconds)
                if len(lacking) < least:  # some of it has come since the line broke
                    waits, least = iter(WAITS_S), len(lacking)
                push = partial(push_object, message.metadata.run_id, session)
                flower.push_object_contents_from_iterable(_contents(tree, lacking, store, ended), push)
                return set(), session
            except (flower.RunNotRunningException, Abandoned):
                raise
            except Exception as error:
                wait = next(waits, None)
                if wait is None or _is_refused(error):
                    raise
                time.sleep(wait)

    return send_all


def _contents(tree: Any, lacking: set[str], store: Any, ended: Callable[[], bool]) -> Iterator[tuple[str, bytes]]:
    """The objects that are lacking, with their contents, each once. What the worker is still writing is waited for, as
    long as there is a worker.

    Raises:
        Abandoned: there is none any more.
    """
    for name in _names(tree):
        if name in lacking:
            while (content := store.get(name)) == b"":
                if ended():
                    raise Abandoned("the worker ended while it handed this answer over")
                time.sleep(_LOOK_S)
            yield name, content


def _names(tree: Any) -> list[str]:
    return list(dict.fromkeys(node.object_id for node in flower.iterate_object_tree(tree)))


def _is_refused(error: Exception) -> bool:
    import httpx

    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _REFUSED
