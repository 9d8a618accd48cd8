"""A person's yes to a study: what asked is kept here, what was approved, and whether a message is covered by it.

May enter: what the door has read of a message. Nothing of it is ever sent.
"""
