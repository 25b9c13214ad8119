"""Certificates of an authority of our own, for tests of TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass
class Certificates:
    """Files in PEM format, and what a client that trusts them uses."""

    ca: Path
    server: Path
    client: Path
    stranger: Path

    def client_context(self, certfile: Path | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if certfile is not None:
            context.load_cert_chain(certfile)
        return context

    def server_context(self, *, clients: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.server)
        if clients:
            context.load_verify_locations(self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(directory: Path) -> Certificates:
    """Issue a certificate for 127.0.0.1, one for a client, and one by another authority."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    issued = {
        "server": authority.issue_cert("127.0.0.1", "localhost"),
        "client": authority.issue_cert("client@example.org"),
        "stranger": trustme.CA().issue_cert("client@example.org"),
    }
    files = {}
    for name, certificate in issued.items():
        files[name] = directory / f"{name}.pem"
        certificate.private_key_and_cert_chain_pem.write_to_path(str(files[name]))
    return Certificates(directory / "ca.pem", **files)
