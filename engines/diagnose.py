"""Says what is wrong with a connection: Flower's "check your network connection" covers everything."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

_SECONDS, _CUT_SECONDS = 10.0, 0.3
# OpenSSL's reasons (X509_V_ERR_...) for not taking a certificate.
_NOT_YET, _EXPIRED, _OTHER_CA, _OTHER_NAME = (9,), (10,), (18, 19, 20, 21), (62, 64)


def trouble(address: str, root_certificates: Path | None) -> str:
    """Return why `host:port` cannot be reached over TLS, or "" if it can.

    Args:
        address: host and port.
        root_certificates: the CA that is trusted; None: those of the system.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        return f"{address} is no host:port"
    try:
        trust = ssl.create_default_context(cafile=str(root_certificates) if root_certificates else None)
    except (OSError, ssl.SSLError) as error:
        return f"the CA certificate {root_certificates} cannot be read: {error}"
    try:
        with (
            socket.create_connection((host, int(port)), timeout=_SECONDS) as plain,
            trust.wrap_socket(plain, server_hostname=host) as secured,
        ):
            return _cut_off(secured, address)
    except ssl.SSLCertVerificationError as error:
        return _distrust(error, address, root_certificates)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return f"{address} answers without TLS; another program may have taken the port"
        return f"the TLS handshake with {address} fails: {error.reason}"
    except socket.gaierror as error:
        return f"the name {host} has no address ({error.strerror})"
    except ConnectionRefusedError:
        return f"nothing listens on {address}"
    except TimeoutError:
        return f"{address} does not answer within {_SECONDS:g} s; a firewall, or the wrong address?"
    except OSError as error:
        return f"{address} cannot be reached: {error.strerror or error}"


def _cut_off(connection: ssl.SSLSocket, address: str) -> str:
    """Return that a server ends the connection before it was asked anything, or ""."""
    connection.settimeout(_CUT_SECONDS)
    try:
        ended = connection.recv(1) == b""
    except TimeoutError:  # it waits for a call, as it should
        return ""
    except OSError:
        ended = True
    reason = (
        "a SuperLink serves the user that started it, and root; be that user (sudo -u), or have it started"
    )
    return f"{address} cuts the connection: {reason} with --allow-user" if ended else ""


def _distrust(error: ssl.SSLCertVerificationError, address: str, root_certificates: Path | None) -> str:
    code = error.verify_code
    if code in _EXPIRED:
        return f"the certificate of {address}, or that of its CA, has expired; make and install a new one"
    if code in _NOT_YET:
        return f"the certificate of {address} is not valid yet; are the clocks of both machines right?"
    if code in _OTHER_NAME:
        return f"the certificate of {address} is for other names ({error.verify_message})"
    if code in _OTHER_CA:
        ca = root_certificates or "the CAs of this system"
        return f"the certificate of {address} is not signed by {ca}; another CA, or another server?"
    return f"the certificate of {address} is not accepted: {error.verify_message}"
