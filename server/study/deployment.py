"""The `deployment` part of a study file: where the coordinator is reached, and which hospitals get a kit."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from dusss_core.config import Strict

SiteName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"


class DeploymentConfig(Strict):
    """How hospitals reach the coordinator."""

    hosts: list[str] = Field(min_length=1)
    """Host names and IP addresses of the coordinator; the server certificate holds all of them, the kits name the
    first."""
    port: int = Field(8443, ge=1, le=65535)
    """Port of nginx, the one port that is open to the hospitals."""
    listen: list[str] = Field(default=["0.0.0.0"], min_length=1)
    """Addresses of this machine on which nginx listens; "[::]" for IPv6."""
    superlink_port: int = Field(9091, ge=1, le=65535)
    """Port of the SuperLink, on the loopback address alone."""
    sites: list[SiteName] = Field(min_length=1)
    """The hospitals; each gets a kit. A name that was added later gets its kit when `provision` runs again."""
    days: int = Field(825, ge=1, le=3650)
    """Validity of the server certificate. `renew-certificate` makes the next one."""
    max_body_mb: int = Field(16, ge=6)
    """Largest request that nginx lets in, in MiB. Flower cuts models into chunks of 5 MiB."""
    requests_per_second: int = Field(100, ge=1)
    """Requests of one address that nginx lets through per second; the rest waits."""
    connections: int = Field(32, ge=4)
    """Open connections of one address, at most."""

    @field_validator("hosts")
    @classmethod
    def _hosts_are_names_or_addresses(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not is_address(host) and not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", host):
                raise ValueError(f"{host!r} is neither a host name nor an IP address")
        return hosts

    @field_validator("listen")
    @classmethod
    def _listen_on_addresses(cls, addresses: list[str]) -> list[str]:
        for address in addresses:
            if not is_address(address.removeprefix("[").removesuffix("]")) or (":" in address) != ("[" in address):
                raise ValueError(f"{address!r} is not an IP address; IPv6 stands in brackets")
        return addresses

    @field_validator("sites")
    @classmethod
    def _sites_are_distinct(cls, sites: list[str]) -> list[str]:
        if len({site.lower() for site in sites}) < len(sites):
            raise ValueError("two sites have the same name")
        return sites

    @model_validator(mode="after")
    def _ports_differ(self) -> DeploymentConfig:
        if self.port == self.superlink_port:
            raise ValueError("port and superlink_port are the same; the SuperLink has its own port, on loopback")
        return self

    @property
    def address(self) -> str:
        """host:port, as the hospitals' files name it."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def is_address(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
