"""Whose the coordinator's folder is. Its account alone may write there: a file of another's stops the SuperLink."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from dusss_core.errors import UserError


def account(uid: int | None = None) -> str:
    """The name of an account; None: of the one that this process runs as."""
    uid = os.geteuid() if uid is None else uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def check_account(folder: Path) -> None:
    """Refuse to work on a coordinator's folder that is another account's, or that holds files of another's.

    Nothing is refused where there is no such folder yet, unless root would make it inside a folder of somebody's.

    Raises:
        UserError: with whose it is, and how to go on as that account.
    """
    try:
        exists = folder.exists()
    except PermissionError:
        raise not_permitted(folder) from None
    if exists:
        for path in (folder, *_inside(folder)):
            _refuse_foreign(path, folder)
    elif os.geteuid() == 0 and folder.parent.exists():
        _refuse_foreign(folder.parent, folder)


def not_permitted(path: Path) -> UserError:
    """What to tell when the system refuses to let this account read `path`."""
    seen = path
    while (owner := _owner(seen)) is None and seen != seen.parent:
        seen = seen.parent
    name, me = account(owner), account()
    if name == me:
        return UserError(f"{path}: {me} may not read it", f"give yourself the right: chmod -R u+rwX {seen}")
    return UserError(
        f"{path}: {me} may not read it; {seen} is {name}'s",
        f"run this as {name}: sudo -iu {name}; or, if it should be {me}'s: sudo chown -R {me}: {seen}",
    )


def _refuse_foreign(path: Path, folder: Path) -> None:
    owner = _owner(path)
    if owner is None or owner == os.geteuid():
        return
    name, me, kits = account(owner), account(), folder.parent
    if path in (folder, kits):
        raise UserError(
            f"{path} is {name}'s, and this command runs as {me}: it would leave files there that {name} cannot use",
            f"run it as {name}: sudo -iu {name}"
            + ("" if me == "root" else f"; or, if it should be {me}'s: sudo chown -R {me}: {kits}"),
        )
    raise UserError(
        f"{path} is {name}'s, in a folder that is {me}'s: a command ran as {name} there",
        f"give it back: sudo chown -R {me}: {kits}; then run this again",
    )


def _inside(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent) / name for name in (*folders, *files))


def _owner(path: Path) -> int | None:
    try:
        return path.lstat().st_uid
    except OSError:
        return None
