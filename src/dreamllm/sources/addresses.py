"""Which addresses of pictures, in files that others wrote, may be asked for.

img2dataset opens whatever the list of addresses has: a file of this machine (`file:`), a service of the local network
or the metadata of a cloud machine, which hold its keys (169.254.169.254). Such addresses are left out and counted.
Names are not looked up here: one that resolves to a private address is not noticed.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from urllib.parse import unquote, urlsplit

LOCAL_NAMES = {"localhost", "ip6-localhost", "ip6-loopback", "metadata", "instance-data"}
LOCAL_DOMAINS = (".localhost", ".localdomain", ".local", ".internal", ".intranet", ".lan", ".home.arpa")
PRIVATE = "address of a private host"
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def refusal(url: str, private_hosts: bool = False) -> str:
    """Why an address is not asked for, in the words of the report; "" for one that may be.

    private_hosts: allow hosts of the local network and of this machine
    """
    try:
        parts = urlsplit(url)
        # as urllib and curl read it: escapes decoded, other forms of digits and of the dot as ASCII
        host = unicodedata.normalize("NFKC", unquote(parts.hostname or "")).replace("。", ".").rstrip(".").lower()
        port = parts.port
    except ValueError:
        return "address is malformed"
    if parts.scheme not in ("http", "https"):
        return "address is not http(s)"
    odd = re.search(r"[\x00-\x20\x7f/@?#%]", host) or re.search(r"[\x00-\x1f\x7f]", url) or "\\" in parts.netloc
    if not host or port == 0 or odd:
        return "address is malformed"
    return "" if private_hosts or not _is_private(host) else PRIVATE


def _is_private(host: str) -> bool:
    """Whether a host, in lower case, is this machine, of the local network, or no address of the public internet."""
    if host in LOCAL_NAMES or host.endswith(LOCAL_DOMAINS):
        return True
    address = _address(host)
    if address is None:
        return False  # a name
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inside = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if address in NAT64 or int(address) < 1 << 32:  # the deprecated form ::a.b.c.d, too
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None and (not inside.is_global or inside.is_multicast):
            return True
        if inside is not None and not address.teredo:
            return False
    return not address.is_global or address.is_multicast


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is, also as one number, in hexadecimal, in octal or shortened; None for a name."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    if re.fullmatch(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+)){0,3}", host):
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:  # a number that is too large: no resolver knows such a name
            return ipaddress.IPv4Address(0)
    return None
