"""Take due deliveries, run their destination's flow through egress, write the attempt and the decision (law three).

Every destination has a lane of its own: its deliveries wait there for its slots, so a slow one delays nobody else.
A delivery comes by one of two ways, always leased: handed over in memory right after the commit that made it (leased at
birth), or claimed when it is due, as far as the destination's health and rate allow. Whatever is lost on the way has a
lease that runs out, and the sweep gives it back.
"""

from receiver.deliver.claims import Claim, HandBack
from receiver.deliver.lanes import Destination
from receiver.deliver.loop import Deliverer
from receiver.deliver.ops import Attempted, Redeliver
from receiver.deliver.replay import Replayer

__all__ = ["Attempted", "Claim", "Deliverer", "Destination", "HandBack", "Redeliver", "Replayer"]
