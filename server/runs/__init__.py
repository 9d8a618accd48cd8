"""A run on disk: its folder, checkpoints, log and events, so that it can be killed anywhere and gone on with.

May enter: models and figures that a round made.
"""
