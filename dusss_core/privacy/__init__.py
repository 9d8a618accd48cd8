"""Record-level differential privacy: the private step, its randomness, and the accounting of what it costs."""
