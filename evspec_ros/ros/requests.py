"""What is asked of the node: its services, another prompt."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Empty, Trigger

from evspec_ros.errors import Failure
from evspec_ros.ros.diagnostics import DescriptionCounts
from evspec_ros.ros.guard import Guard
from evspec_ros.ros.inputs import Inputs
from evspec_ros.ros.worker import Worker


class Requests:
    """Answers ~/describe and ~/reset_statistics, sets what comes on ~/prompt."""

    def __init__(
        self, node: Node, inputs: Inputs, worker: Worker, counts: DescriptionCounts, guard: Guard
    ) -> None:
        self._node = node
        self._inputs = inputs
        self._worker = worker
        self._counts = counts
        describe = guard("A request could not be answered", self._describe, _unanswered)
        node.create_service(Trigger, "~/describe", describe)
        reset = guard("Statistics could not be reset", self._reset_statistics, lambda *given: given[-1])
        node.create_service(Empty, "~/reset_statistics", reset)
        node.create_subscription(String, "~/prompt", guard("The prompt could not be set", self._prompt), 10)

    def _prompt(self, message: String) -> None:
        """Set the parameter, with its checks."""
        (result,) = self._node.set_parameters([Parameter("prompt", value=message.data)])
        if not result.successful:
            problem = f"The prompt could not be set: {result.reason}"
            self._node.get_logger().warning(problem)
            self._counts.note(problem)

    async def _describe(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer with the text of the newest window, once it is written."""
        if not self._worker.running:
            response.message = "The node is not active; activate it first."
            return response
        answer = Future(executor=self._node.executor)
        answer.add_done_callback(lambda _: None)  # a callback is what wakes the executor
        self._worker.request(answer)
        response.success, response.message = await answer
        return response

    def _reset_statistics(self, _: Empty.Request, response: Empty.Response) -> Empty.Response:
        self._inputs.reset_counts()
        self._worker.mailbox.reset_count()
        self._counts.reset()
        return response


def _unanswered(failure: Failure, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
    response.message = f"The request could not be answered: {failure.problem}."
    return response
