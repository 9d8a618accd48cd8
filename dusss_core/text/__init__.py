"""Sentences: how they are worded, encoded by a frozen text encoder, and kept as features of their tokens.

May enter: distinct sentences, never who they are about.
"""
