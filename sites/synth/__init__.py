"""Synthetic hospitals, whose pictures, masks and sentences are nobody's.

May enter: a config and a seed; the same ones give the same bytes.
"""
