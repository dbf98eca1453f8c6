"""The network: one libp2p host per peer, gossip on the task's topic, requests over streams, blobs by digest.

`host.open_network` is the door; nothing outside this package imports libp2p.
"""

from p2pdfl.net.gossip.pubsub import Incoming
from p2pdfl.net.host import Network, NetworkFailed, open_network
from p2pdfl.net.limits.bounds import Limits
from p2pdfl.net.requests import Refused, Unreachable

__all__ = ["Incoming", "Limits", "Network", "NetworkFailed", "Refused", "Unreachable", "open_network"]
