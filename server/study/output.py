"""The `output` part of a study file: where the figures of a run go beside its folder."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pydantic import field_validator

from dusss_core.config import Strict

_STORES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")


class OutputConfig(Strict):
    """What is written of a run beside metrics.jsonl and summary.json, with the same figures. Nothing that is trained
    depends on it, and it may change when a run is resumed."""

    tensorboard: bool = False
    """TensorBoard's event files, in RUN/tensorboard: a folder for each site, and `_all`. Needs
    feddusss[tensorboard]."""
    mlflow: str | None = None
    """An MLflow run: a folder of this machine, in which mlflow.db is made, or the URI of a tracking server or database.
    With a server on another machine the figures of metrics.jsonl, and the study's settings, leave this one. Needs
    feddusss[mlflow]."""

    @field_validator("mlflow")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.strip():
            raise ValueError("empty; name a folder or a URI, or leave it out")
        scheme = re.match(r"([A-Za-z0-9]+)(?:\+[A-Za-z0-9]+)?://", value)
        if scheme and scheme[1].lower() not in _STORES:
            raise ValueError(f"a folder, or a URI of one of these kinds: {', '.join(_STORES)}")
        web = scheme is not None and scheme[1].lower() in ("http", "https")
        if scheme and _tells_password(value, web):
            raise ValueError(
                "a password here would stand in the run's files and its report; give it by "
                + ("MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD" if web else "PGPASSWORD or an option file")
            )
        return value

    @property
    def mlflow_folder(self) -> str | None:
        """The folder, where `mlflow` names one and no URI."""
        return None if self.mlflow is None or "://" in self.mlflow else self.mlflow


def _tells_password(uri: str, web: bool) -> bool:
    """Whether a URI holds a password; of a web server also a name, which stands beside one or is a token."""
    parts = urlsplit(uri)
    return parts.password is not None or (web and parts.username is not None) or "password=" in parts.query.lower()
