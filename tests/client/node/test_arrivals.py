"""The SuperNode's word to its worker that a message has come."""

from __future__ import annotations

import threading
import time

from client.node import arrivals


def test_a_message_is_noticed_at_once_and_also_where_it_came_before_the_wait(tmp_path):
    before = arrivals.seen(tmp_path)
    began = time.monotonic()
    threading.Timer(0.1, arrivals.announce, [tmp_path]).start()
    assert arrivals.wait(tmp_path, before, 30)
    assert time.monotonic() - began < 15
    assert arrivals.wait(tmp_path, before, 0)  # it came while the worker was busy: not missed
    assert not arrivals.wait(tmp_path, arrivals.seen(tmp_path), 0.05)


def test_without_the_folder_a_worker_asks_as_it_would_anyway(tmp_path):
    missing = tmp_path / "none"
    arrivals.announce(missing)
    assert not arrivals.wait(missing, arrivals.seen(missing), 0.02)
