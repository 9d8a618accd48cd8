"""A finished student at work on files: what `python -m dusss_core predict`, `fit` and `evaluate` do.

May enter: files and folders of pictures in every format that is read, and manifests. What cannot be read is named, and
the rest is done.
"""
