"""How Flower's HTTP servers take what is sent to them: a chunk of a model at a time.

Models travel in chunks of 5 MiB. uvicorn stops to read after 64 KiB, until the app has taken them, and each such piece
passes all of Flower's middleware: half of the processor time of an upload. Here it reads on.
"""

from __future__ import annotations

CHUNK_BYTES = 6 * 2**20
"""Of a request, what a server holds in memory before it stops to read: a chunk, and what goes with it."""


def read_on() -> None:
    """Let the uvicorn servers of this process read whole chunks."""
    from uvicorn.protocols.http import flow_control, h11_impl, httptools_impl

    for module in (flow_control, h11_impl, httptools_impl):
        module.HIGH_WATER_LIMIT = CHUNK_BYTES
