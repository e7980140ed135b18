"""Restricted discovery (v3 client authorisation): only whoever holds a listed key can read an onion's descriptor.

In: x25519 keys of clients, as text of tor's forms or fresh. Out: those forms again, the arguments of ADD_ONION that
restrict a service, and the credentials a tor holds as a client (control-spec ONION_CLIENT_AUTH_*, rend-spec-v3 §G.1).
One key has one spelling here, though tor takes several: it notices neither duplicates nor points of low order.
"""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nacl.bindings import crypto_scalarmult, crypto_scalarmult_base
from nacl.exceptions import CryptoError
from nacl.utils import random as random_bytes
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, too_large
from ron.tor.control import answered
from ron.tor.onionkeys import onion_address

KEY_BYTES = 32
FLAG = "V3Auth"
"""The flag that goes with `add_onion_options`; tor refuses one without the other."""
MAX_CLIENTS = 256
"""They all are in the descriptor, whose limit is 50 000 bytes. tor 0.4.9.11 with three introduction points made 41 kB
of 256, published up to 368, and with 400 said OK and never published."""
_PREFIX = "descriptor:x25519:"
_P = 2**255 - 19
_BASE32 = re.compile(r"[A-Za-z2-7]{52}")
_ONION = re.compile(r"[a-z2-7]{56}")
# tor 0.4.9.11 answers a name of more than 16 characters twice, and every later answer is then taken for another's.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,16}")
_CLIENT = re.compile(
    r"CLIENT (?P<onion>[A-Za-z2-7]{56}) x25519:(?P<key>[A-Za-z0-9+/]{43}=?)(?: ClientName=(?P<name>[^\s=]+))?(?: .*)?"
)


@dataclass(frozen=True, slots=True)
class ClientPublic:
    """What a service knows of a client: `raw`, 32 bytes. Raises `RonError` for what no honest key can be."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise bad_request(f"a client key has {KEY_BYTES} bytes, not {len(self.raw)}")
        # RFC 7748 §5 ignores the top bit and reduces the rest: other spellings of the same key
        if int.from_bytes(self.raw, "little") >= _P:
            raise bad_request("not a canonical x25519 key")
        try:
            # any clamped scalar shows a low order; this one guards no secret
            crypto_scalarmult(b"\x40" * KEY_BYTES, self.raw)
        except CryptoError:
            raise bad_request("an x25519 key of low order keeps nobody out", hint="make a new client key") from None

    @property
    def base32(self) -> str:
        """52 characters, upper case, as ADD_ONION and `.auth` files have it."""
        return _base32(self.raw)

    def to_line(self) -> str:
        """`descriptor:x25519:<base32>`, the line of a file in a service's `authorized_clients`."""
        return _PREFIX + self.base32


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A client's secret and its `public`. Equal when the public halves are; the repr keeps the secret."""

    secret: bytes = field(repr=False, compare=False)
    public: ClientPublic = field(init=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise bad_request(f"a client key has {KEY_BYTES} bytes, not {len(self.secret)}")
        if not any(self.secret):
            raise bad_request("the client key is all zero", hint="make a new client key")
        object.__setattr__(self, "public", ClientPublic(crypto_scalarmult_base(self.secret)))

    @property
    def base32(self) -> str:
        """The secret as 52 characters, upper case. For its owner only."""
        return _base32(self.secret)

    def auth_private_line(self, onion: str) -> str:
        """`<56 characters>:descriptor:x25519:<base32>`, an `.auth_private` file in a client's ClientOnionAuthDir."""
        return f"{service_id(onion)}:{_PREFIX}{self.base32}"


class Credential(NamedTuple):
    """`key` opens the descriptor of `onion` (`<56 characters>.onion`); `name` is tor's ClientName."""

    onion: str
    key: ClientKey
    name: str | None = None


class Added(enum.StrEnum):
    """What a tor did with a credential."""

    NEW = "new"
    REPLACED = "replaced"
    DECRYPTED = "decrypted"
    """New, and a descriptor that it had fetched before could be read with it."""


def generate(randomness: Callable[[int], bytes] = random_bytes) -> ClientKey:
    """A fresh key. randomness: so many random bytes, the system's source unless given."""
    return ClientKey(randomness(KEY_BYTES))


def parse_public(text: str) -> ClientPublic:
    """52 base32 characters, or the whole line `descriptor:x25519:<base32>`. Raises `RonError` without quoting it."""
    return ClientPublic(_unbase32(text.removeprefix(_PREFIX)))


def parse_secret(text: str) -> ClientKey:
    """The secret as 52 base32 characters. Raises `RonError` without quoting it."""
    return ClientKey(_unbase32(text))


def parse_auth_private(line: str) -> Credential:
    """The line of an `.auth_private` file, with or without its line end. Raises `RonError` without quoting it."""
    onion, colon, rest = line.removesuffix("\n").partition(":")
    if not colon or not rest.startswith(_PREFIX):
        raise bad_request("not a line of an .auth_private file", hint="it is <onion>:descriptor:x25519:<key>")
    return Credential(f"{service_id(onion)}.onion", parse_secret(rest.removeprefix(_PREFIX)))


def service_id(onion: str) -> str:
    """The 56 characters of a v3 address, with or without `.onion`, in lower case; its checksum must fit.

    tor takes upper case too, and then lists credentials under that spelling only.
    """
    name = onion.removesuffix(".onion")
    if not _ONION.fullmatch(name) or onion_address(base64.b32decode(name.upper())[:32]) != f"{name}.onion":
        raise bad_request("not a v3 onion address", hint="it has 56 characters a-z and 2-7, then .onion")
    return name


def client_auth_argument(client: ClientPublic) -> str:
    """`ClientAuthV3=<base32>` for ADD_ONION. `add_onion_options` makes those of all clients, and looks at them all."""
    return f"ClientAuthV3={client.base32}"


def add_onion_options(clients: Sequence[ClientPublic]) -> tuple[str, ...]:
    """`ClientAuthV3=<base32>` for each of `clients`; the service then needs the flag `FLAG` (tor 0.4.6 or newer).

    Raises `RonError`: Conflict for a client named twice, BadRequest for none, TooLarge for more than `MAX_CLIENTS`.
    """
    if not clients:
        raise bad_request("a restricted onion needs a client", hint="add a client key, or lift the restriction")
    if len(clients) > MAX_CLIENTS:
        raise too_large(f"{len(clients)} clients do not fit into a descriptor, {MAX_CLIENTS} do")
    if len(set(clients)) != len(clients):
        raise conflict("the same client key is listed twice")
    return tuple(map(client_auth_argument, clients))


async def add_credential(reactor: Any, control: TorControlProtocol, credential: Credential) -> Added:
    """Let the tor behind `control` reach a restricted onion, until it ends: nothing is written to its disk.

    A credential it holds for that onion is replaced. Raises `RonError`: BadRequest for a name tor would choke on,
    Unavailable when it does not answer within 10 s, otherwise by tor's own code.
    """
    if credential.name is not None and not _NAME.fullmatch(credential.name):
        raise bad_request("a client's name has 1 to 16 characters of a-z, A-Z, 0-9, - and _")
    key = base64.b64encode(credential.key.secret).decode()
    name = f" ClientName={credential.name}" if credential.name else ""
    said = await _tell(reactor, control, f"ONION_CLIENT_AUTH_ADD {service_id(credential.onion)} x25519:{key}{name}")
    # txtorcon hands on the text of an answer and not its code (250, 251, 252)
    if "replaced" in said:
        return Added.REPLACED
    return Added.DECRYPTED if "decrypted" in said else Added.NEW


async def remove_credential(reactor: Any, control: TorControlProtocol, onion: str) -> bool:
    """Forget the credential for `onion`; False when there was none. Raises like `add_credential`."""
    said = await _tell(reactor, control, f"ONION_CLIENT_AUTH_REMOVE {service_id(onion)}")
    return not said.startswith("No credentials")


async def list_credentials(
    reactor: Any, control: TorControlProtocol, onion: str | None = None
) -> tuple[Credential, ...]:
    """What the tor behind `control` holds, for `onion` or in all, secrets included. Raises like `add_credential`."""
    only = f" {service_id(onion)}" if onion is not None else ""
    said = await _tell(reactor, control, f"ONION_CLIENT_AUTH_VIEW{only}")
    return parse_view(said)


def parse_view(text: str) -> tuple[Credential, ...]:
    """The answer to ONION_CLIENT_AUTH_VIEW. Fields we do not know are passed over, as control-spec §1.1 asks."""
    return tuple(_credential(line) for line in text.splitlines() if line.startswith("CLIENT"))


def _credential(line: str) -> Credential:
    match = _CLIENT.fullmatch(line)
    if match is None:
        raise RonError(ErrorCode.INTERNAL, "tor lists a client credential that cannot be read")
    # some controllers leave the padding out, and tor gives back what they gave
    secret = base64.b64decode(match["key"].rstrip("=") + "=")
    return Credential(f"{match['onion'].lower()}.onion", ClientKey(secret), match["name"])


async def _tell(reactor: Any, control: TorControlProtocol, command: str) -> str:
    """tor's answer. Neither the command nor tor's refusal gets into an error: both hold the secret key."""
    try:
        return str(await answered(reactor, control.queue_command(command)))
    except TorProtocolError as error:
        raise _refusal(error.code) from None


def _refusal(code: int) -> RonError:
    if code == 551:
        return conflict("tor has another client credential of that name")
    if code in (510, 552):
        return RonError(ErrorCode.UNSUPPORTED, "this tor knows no x25519 client credentials", hint="upgrade tor")
    if code in (512, 553):
        return bad_request("tor refuses the client credential", hint="check the onion's address; make a new client key")
    return RonError(ErrorCode.INTERNAL, f"tor failed on a client credential: error {code}")


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=")


def _unbase32(text: str) -> bytes:
    if not _BASE32.fullmatch(text):
        raise bad_request("not a client key", hint="it is 52 characters of A-Z and 2-7, without padding")
    raw = base64.b32decode(text.upper() + "====")
    if _base32(raw) != text.upper():
        raise bad_request("not a client key: its last character holds bits that no key has")
    return raw
