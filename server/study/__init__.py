"""The study file: the one place where a coordinator's settings are typed.

May enter: a YAML file and `--set`. What comes out is checked, with a remedy for each mistake.
"""
