"""The documentation as a site: what `make docs` adds to the pages of docs/, and what tests ask of them.

No part of the installation. May import every room, and is imported by none.
"""
