"""Processes, ports and locks of this machine. Where there is no /proc (macOS), what it alone knows is not told."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from dusss_core.files import exclusive

MARK = "FEDDUSSS_FEDERATION"
"""In the environment of every process of a federation: its folder. Children have it too, whatever their session."""
_PROC = Path("/proc")
_LISTENS = "0A"


def marked(out: Path) -> dict[int, str]:
    """Living processes of the federation in `out`, by number, with what they are."""
    wanted = f"{MARK}={out}".encode()
    found = {}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # another account's, or gone meanwhile
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = name_of(int(folder.name))
    found.pop(os.getpid(), None)
    return found


def superlinks_in(coordinator: Path) -> dict[int, str]:
    """SuperLinks that work in a coordinator's folder, whoever started them, as `marked`."""
    found = {}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cwd").readlink() == coordinator and "superlink" in (name := name_of(int(folder.name))):
                found[int(folder.name)] = name
    return found


def name_of(pid: int) -> str:
    """What a process is, in a few words: `python -m client`, `flower-superexec`, ..."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    names = [Path(word).name for word in words[:3]]
    if "-m" in names[:2] and len(names) == 3:
        return f"python -m {names[2]}"
    return names[1] if names[0].startswith("python") and len(names) > 1 and names[1] else names[0]


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: ended connections do not count
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def listener(port: int) -> int | None:
    """The process that listens on a port, if it is this account's."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    for folder in _PROC.glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(str(file.readlink()) in inodes for file in (folder / "fd").iterdir()):
                return int(folder.name)
    return None


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file of `dusss_core.files.exclusive`."""
    try:
        with exclusive(lock):
            return False
    except BlockingIOError:
        return True


def holder(lock: Path) -> int | None:
    """The process that holds a lock file."""
    with suppress(OSError):
        inode = str(lock.stat().st_ino)
        for line in (_PROC / "locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 08:01:1234 0 EOF
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode and int(words[4]) > 0:
                return int(words[4])
    return None
