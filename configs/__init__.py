"""Presets of studies; they hold only what differs from the defaults."""
