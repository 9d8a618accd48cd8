"""Record-level differential privacy: the private step, its randomness, and the accounting of what it costs.

May enter: a trainer of a phase, whose step is made private here. What was spent is the site's to remember.
"""
