"""multistream-select with bounds.  Part of adapter.py: repairs of py-libp2p 0.8.1.

As shipped a protocol's name may have any length and is read whole into memory, before anybody has said who he is; a
name that is not UTF-8 raises what nobody expects; and one negotiation may propose names without end.
"""

from __future__ import annotations

from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IOException
from libp2p.io.utils import read_exactly
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import decode_uvarint_from_stream

from p2pdfl.net.limits.bounds import PROTOCOL_NAME_BYTES_MAX, PROTOCOL_PROPOSALS_MAX


def repair() -> None:
    MultiselectCommunicator.read = _read  # type: ignore[method-assign]


async def _read(self: MultiselectCommunicator) -> str:
    taken = getattr(self, "names_taken", 0) + 1
    self.names_taken = taken  # type: ignore[attr-defined]
    if taken > PROTOCOL_PROPOSALS_MAX:
        raise MultiselectCommunicatorError("too many protocols proposed")
    try:
        length = await decode_uvarint_from_stream(self.read_writer)
        if length > PROTOCOL_NAME_BYTES_MAX:
            raise MultiselectCommunicatorError("a protocol's name is too long")
        name = await read_exactly(self.read_writer, length)
        if not name.endswith(b"\n"):
            raise MultiselectCommunicatorError("a protocol's name has no end")
        return name[:-1].decode()
    except (ParseError, IOException, UnicodeDecodeError) as error:
        raise MultiselectCommunicatorError("a protocol's name cannot be read") from error
