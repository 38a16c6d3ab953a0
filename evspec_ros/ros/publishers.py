"""Who publishes on an input topic: another type or an incompatible QoS never arrives, and says nothing."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible


class PublisherWatch:
    """The publishers on the topic of one subscription, as the graph tells of them."""

    def __init__(self, node: Node, subscription: Any) -> None:
        self._node = node
        self._topic: str = subscription.topic_name
        self._qos = subscription.qos_profile
        kind = subscription.msg_type
        self._type = f"{kind.__module__.partition('.')[0]}/msg/{kind.__name__}"
        self.names: tuple[str, ...] = ()  # of their nodes, at the last look
        self._told = ""

    def look(self) -> str:
        """What is wrong with the publishers, "" where nothing is; it is logged when it changes.

        Those whose messages cannot arrive come first, then several of the right kind, of which one is
        followed.
        """
        publishers = self._node.get_publishers_info_by_topic(self._topic)
        self.names = tuple(map(_name, publishers))
        problems = [(publisher, self._problem(publisher)) for publisher in publishers]
        told = [problem for _, problem in problems if problem]
        well = [_name(publisher) for publisher, problem in problems if not problem]
        if len(well) > 1:
            told.append(
                f"{len(well)} publishers ({', '.join(well)}) share {self._topic}, and one of them is "
                "followed: let only one camera publish here."
            )
        misfit = " ".join(told)
        if misfit != self._told:
            self._told = misfit
            if misfit:
                self._node.get_logger().warning(misfit)
        return misfit

    def _problem(self, publisher: Any) -> str:
        name = _name(publisher)
        if publisher.topic_type != self._type:
            return (
                f"{name} publishes {publisher.topic_type} on {self._topic}, which is read as {self._type}: "
                "remap the topic, or set events_type or image_transport."
            )
        fits, reason = qos_check_compatible(publisher.qos_profile, self._qos)
        if fits == QoSCompatibility.ERROR:
            return (
                f"{name} offers a QoS on {self._topic} that is not compatible: {reason.strip().rstrip('.;')}."
            )
        return ""


def _name(publisher: Any) -> str:
    return f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}"
