"""Keeps a site connected: the supervisor, the SuperNode and the worker that it starts, and what a person is told.

May enter: nothing of a message but its kind, phase and round, to be shown. What it holds goes to `client.app` unread.
"""
