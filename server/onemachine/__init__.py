"""A real federation on one machine: `flower-superlink` and a `python -m client` per hospital, each a process, as
between machines, for a short study; all of them end with it.

May enter: a person's command. The hospitals' part is done by their own commands, but for the synthetic pictures.
"""
