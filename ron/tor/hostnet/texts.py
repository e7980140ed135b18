"""What a bundle says in words: its torrc, systemd unit and README. Pure.

In: the manifest and a node of it. Out: text that still holds `${directory}`, `${user}`, `${tor}`, `${ronctl}`
or `${socks_port}`: a host fills these in when it joins (`filled`).
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ron.proto.errors import bad_request
from ron.tor.hostnet.plan import CLIENT, VANGUARDS_FROM_NODES, Manifest, Node, places

USUAL_SOCKS_PORT = 9050
MIN_PROBE_S = 15
_PARTS: dict[str, tuple[str, ...]] = {
    "authority": ("common", "relay", "authority"),
    "relay": ("common", "relay"),
    CLIENT: ("common", "client"),
}
# systemd splits ExecStart at blanks and torrc takes # and quotes for its own: a path needs none of them
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+", re.ASCII)
_FIRST_PRIVILEGED_FREE_PORT = 1024

_UNIT = """\
[Unit]
Description=${what} of a private Tor network
Documentation=https://www.torproject.org/docs/
After=network-online.target
Wants=network-online.target

[Service]
Type=simple
User=$${user}
ExecStart=$${tor} -f $${directory}/torrc --defaults-torrc $${directory}/nothing
ExecReload=/bin/kill -HUP $$$$MAINPID
KillSignal=SIGINT
TimeoutStopSec=40
Restart=on-failure
RestartSec=5
LimitNOFILE=65536
UMask=0077
ProtectHome=yes
PrivateUsers=${private_users}
CapabilityBoundingSet=${capabilities}
AmbientCapabilities=${capabilities}
MemoryDenyWriteExecute=yes
"""

_SANDBOX = """\
# Nothing but its own data and the network.
ReadWritePaths=$${directory}/data
ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
NoNewPrivileges=yes
LockPersonality=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
# netlink: tor asks the kernel for the host's addresses
RestrictAddressFamilies=AF_INET AF_UNIX AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

"""

_INSTALL = """\
[Install]
WantedBy=multi-user.target
"""

_PROBE = """\
[Unit]
Description=Look at the relays of a private Tor network for authority ${name}
After=ron-tor-${name}.service

[Service]
Type=oneshot
User=$${user}
ExecStart=$${ronctl} tornet probe --dir $${directory}
TimeoutStartSec=60
UMask=0077
ProtectHome=read-only
PrivateUsers=yes
CapabilityBoundingSet=
"""

_TIMER = """\
[Unit]
Description=Look at the relays of a private Tor network for authority ${name}, over and over

[Timer]
OnActiveSec=${every_s}s
OnUnitActiveSec=${every_s}s
AccuracySec=1s

[Install]
WantedBy=timers.target
"""

_README = """\
${what} of the private Tor network ${network}, generation ${generation}
${address}
Carry this bundle over a safe channel (scp) and compare its SHA-256 with what "ronctl tornet" printed.
${secret}

On the host, as root:

  1. ronctl tornet join --bundle ${name}.tar --dir /var/lib/ron-tor/${name} --user debian-tor
  2. cp /var/lib/ron-tor/${name}/ron-tor-${name}* /etc/systemd/system/ && systemctl daemon-reload
  3. systemctl enable --now ${units}
     (one that runs already: systemctl reload ron-tor-${name})

${then}
"""

_JOINED = 'Then, where the operator keeps network.json: "ronctl tornet check" lists it when the next vote is over.'
_CLIENT_JOINED = f"""\
Start clients once "ronctl tornet check" calls the network whole; an earlier one may need minutes to see all of it.
Programs use SOCKS 127.0.0.1:{USUAL_SOCKS_PORT}; "join --socks-port" chooses another, and every client on a host needs
its own. snippet.torrc has the lines that make a tor of your own a client."""


def node_torrc(manifest: Manifest, node: Node) -> str:
    """The torrc of `node`. Raises KeyError when it has no keys yet."""
    timing = manifest.timing()
    return _torrc(
        manifest,
        node.role,
        {
            "nickname": node.name,
            "address": node.address,
            "or_port": node.or_port,
            "dir_port": node.dir_port,
            "admitted": admitted(manifest),
            **timing._asdict(),
        },
    )


def client_torrc(manifest: Manifest) -> str:
    """The torrc of a client on any host."""
    return _torrc(manifest, CLIENT, {})


def snippet(manifest: Manifest) -> str:
    """The lines that make a tor of your own a client of this network, for a torrc that you write yourself."""
    head = f"# Private Tor network {manifest.network_id}, generation {manifest.generation}: add to a client's torrc.\n"
    lines = client_torrc(manifest).splitlines()
    wanted = ("TestingTorNetwork", "EnforceDistinct", "ClientReject", "UseDefaultFallback", "DirAuthority", "Vanguards")
    more = ("ClientUseIPv6", "PathsNeeded", "DirAllowPrivate", "ExtendAllowPrivate", "ClientOnly")
    return head + "".join(f"{line}\n" for line in lines if line.startswith((*wanted, *more)))


def admitted(manifest: Manifest) -> str:
    """An address policy that lets in the hosts of the manifest and nobody else (tor looks at no ports here)."""
    addresses = dict.fromkeys(node.address for node in manifest.nodes)
    return ",".join((*(f"accept {address}:*" for address in addresses), "reject *:*"))


def authority_lines(manifest: Manifest) -> str:
    """A DirAuthority line per authority."""
    return "\n".join(
        f"DirAuthority {node.name} orport={node.or_port} v3ident={node.v3ident} "
        f"{node.address}:{node.dir_port} {node.fingerprint}"
        for node in manifest.authorities()
    )


def unit(what: str, ports: tuple[int, ...]) -> str:
    """The systemd unit of a tor that listens on `ports`."""
    low = any(port < _FIRST_PRIVILEGED_FREE_PORT for port in ports)
    values = {
        "what": what,
        "capabilities": "CAP_NET_BIND_SERVICE" if low else "",
        # a user namespace of its own would take the capability's effect away
        "private_users": "no" if low else "yes",
    }
    return string.Template(_UNIT + _SANDBOX + _INSTALL).substitute(values)


def probe_units(manifest: Manifest, node: Node) -> dict[str, str]:
    """The service and the timer by which an authority keeps looking at the relays, by file name."""
    every_s = max(MIN_PROBE_S, manifest.voting_interval_s // 4)
    values = {"name": node.name, "every_s": every_s}
    return {
        f"ron-tor-{node.name}-probe.service": string.Template(_PROBE + _SANDBOX).substitute(values),
        f"ron-tor-{node.name}-probe.timer": string.Template(_TIMER).substitute(values),
    }


def readme(manifest: Manifest, name: str, node: Node | None, *, secret: bool) -> str:
    """How a host takes the bundle of `node` (of a client when None). secret: it holds keys."""
    where = "" if node is None else f"It runs on {node.address} and listens on {', '.join(places(node))}.\n"
    return string.Template(_README).substitute(
        what=f"{node.role.capitalize()} {name}" if node else "A client",
        network=manifest.network_id,
        generation=manifest.generation,
        address=where,
        secret="It holds private keys: remove every copy once the host has joined."
        if secret
        else "It holds no secret.",
        name=name,
        units=f"ron-tor-{name}" + (f" ron-tor-{name}-probe.timer" if node and node.role == "authority" else ""),
        then=_JOINED if node else _CLIENT_JOINED,
    )


def filled(text: str, values: Mapping[str, object]) -> str:
    """`text` with what the host decides. Raises BadRequest for a value that would break the file, or a gap left."""
    for name, value in values.items():
        if not _PLAIN.fullmatch(str(value)):
            raise bad_request(f"{name} {str(value)!r} cannot be used", "letters, digits and / . _ + - only")
    try:
        return string.Template(text).substitute(values)
    except (KeyError, ValueError) as error:
        raise bad_request(f"the bundle's text has a gap nobody fills: {error}", "make the bundle anew") from None


def _torrc(manifest: Manifest, role: str, values: dict[str, object]) -> str:
    folder = Path(str(files("ron.tor").joinpath("templates")))
    text = "\n".join((folder / f"host-{part}.torrc").read_text() for part in _PARTS[role])
    return string.Template(text).safe_substitute(
        {
            "dir_authorities": authority_lines(manifest),
            "vanguards": int(len(manifest.nodes) >= VANGUARDS_FROM_NODES),
            **values,
        }
    )
