"""One hospital's node: what stands here is installed at the hospital, and answers to the hospital's own file alone.

docs/architecture.md walks a message through the rooms.
"""
