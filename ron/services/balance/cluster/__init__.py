"""Who leads a RustBalance cluster, and whose heads are in the descriptor.

In: beats of the other nodes, operators' orders, the time. Out: a `Standing`: the leader and why, each head in or out
and why, what this node is to do now. Pure: no reactor, no sockets, no clock of its own. See docs/election.rst.
"""

from ron.services.balance.cluster.cluster import Cluster, Duties, Standing
from ron.services.balance.cluster.descriptor_plan import HeadSeen, Plan
from ron.services.balance.cluster.election import Candidate, Choice, Fitness, leader
from ron.services.balance.cluster.membership import NodeView, State
from ron.services.balance.cluster.orders import (
    Orders,
    Promote,
    Roulette,
    Siege,
    most_put_out,
    read_orders,
)
from ron.services.balance.cluster.publications import Reason
from ron.services.balance.cluster.timing import Timing

__all__ = [
    "Candidate",
    "Choice",
    "Cluster",
    "Duties",
    "Fitness",
    "HeadSeen",
    "NodeView",
    "Orders",
    "Plan",
    "Promote",
    "Reason",
    "Roulette",
    "Siege",
    "Standing",
    "State",
    "Timing",
    "leader",
    "most_put_out",
    "read_orders",
]
