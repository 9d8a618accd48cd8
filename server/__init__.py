"""The coordinator. It sees trained tensors and single figures of hospitals, and never their data.

docs/architecture.md walks a round through the rooms.
"""
