"""Plays both sides on one machine; the only part of `server` that knows hospitals and their data."""
