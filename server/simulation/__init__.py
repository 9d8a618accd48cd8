"""Plays both sides on one machine; the only part of `server` that knows hospitals and their data.

May enter: data of hospitals that one person owns all of. What crosses between the sides is what would cross a network.
"""
