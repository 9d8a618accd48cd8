"""The one error that means "the user must mend something"."""

from __future__ import annotations

import sys
from typing import Any


class UserError(Exception):
    """Something outside the program is wrong and a person can put it right.

    Command lines print it without a traceback and exit with code 2.

    Args:
        problem: what is wrong, with the place: file, row, key.
        remedy: what to do about it, one imperative sentence.
        code: of docs/errors.md; left out: that of the class, or of the module that makes the error.
    """

    code = ""

    def __init__(self, problem: str, remedy: str = "", code: str = ""):
        super().__init__(problem if not remedy else f"{problem}\n  -> {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.code = code or type(self).code or code_of(_module(sys._getframe(1).f_globals))


class NotFinite(UserError):
    """Training gave a loss or weights that are not finite."""

    code = "FD502"


UNNAMED, OPTION, DATA, CERTIFICATE, DISK, OUTPUT = "FD100", "FD102", "FD201", "FD402", "FD602", "FD604"
CODES = {
    "feddusss.configfile": "FD101",
    "server.study": "FD101",
    "sites.config": "FD101",
    "feddusss.cli": OPTION,
    "feddusss.monitoring": OPTION,
    "server.report.watch": OPTION,
    "dusss_core.__main__": OPTION,
    "dusss_core.manifest": DATA,
    "dusss_core.sheets": DATA,
    "dusss_core.pictures": "FD202",
    "dusss_core.readers": "FD202",
    "sites": "FD203",
    "dusss_core.text": "FD204",
    "dusss_core.student": "FD301",
    "dusss_core.predicting": "FD301",
    "dusss_core.export": "FD302",
    "dusss_core.build": "FD303",
    "dusss_core.models": "FD303",
    "dusss_core.devices": "FD304",
    "server.deployment": "FD401",
    "client.preflight": "FD401",
    "server.deployment.certificates": CERTIFICATE,
    "server.deployment.registry": CERTIFICATE,
    "server.deployment.provision": CERTIFICATE,
    "server.deployment.folder": CERTIFICATE,
    "server.deployment.administration": CERTIFICATE,
    "client.secure.keys": CERTIFICATE,
    "client": "FD403",
    "server.onemachine": "FD404",
    "server.rounds": "FD501",
    "server.app": "FD504",
    "server.simulation": "FD504",
    "server.runs": "FD601",
    "dusss_core.files": DISK,
    "dusss_core.quota": DISK,
    "server.rounds.spool": DISK,
    "server.runs.to_tensorboard": OUTPUT,
    "server.runs.to_mlflow": OUTPUT,
    "server.runs.outputs": OUTPUT,
    "client.privacy": "FD701",
    "dusss_core.privacy": "FD701",
    "server.simulation.privacy": "FD701",
    "client.door.audit": "FD702",
    "client.state.chain": "FD702",
    "client.consent": "FD703",
    "client.studies": "FD703",
    "client.secure": "FD704",
}
"""Module or package -> the code of what its errors are about; the longest name counts. docs/errors.md explains each. A
code stays what it is: where one does not fit any more, it is given up, and not used again."""


def _module(globals_: dict[str, Any]) -> str:
    """The name of a module; of one that is run with `python -m`, which calls itself `__main__`, as it is imported."""
    return str(getattr(globals_.get("__spec__"), "name", None) or globals_.get("__name__", ""))


def code_of(module: str) -> str:
    """The code of errors that a module makes."""
    while module:
        if module in CODES:
            return CODES[module]
        module = module.rpartition(".")[0]
    return UNNAMED


def told(error: Exception) -> str:
    """The text of an error, with its code, if it has one, at the end of the first line."""
    first, newline, rest = str(error).partition("\n")
    code = getattr(error, "code", "")
    return f"{first} [{code}]{newline}{rest}" if isinstance(code, str) and code.startswith("FD") else str(error)
