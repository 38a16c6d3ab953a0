"""The action ~/ask: questions about now, answered while they are written."""

from __future__ import annotations

from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.node import Node
from rclpy.task import Future

from evspec_ros.errors import Failure
from evspec_ros.ros.answers import Answer, AskedNow
from evspec_ros.ros.guard import Guard
from evspec_ros.ros.messages import answer_message
from evspec_ros.ros.requirements import OWN_REMEDY, ask_type
from evspec_ros.ros.worker import Worker

MOST_WAITING = 10  # questions that are not answered yet; a further one is refused
RESULT_KEPT_S = 60  # for a client that asks late what came of its goal


class AskServer:
    """Takes goals on ~/ask while the node is active and hands them to the worker, which answers them in their
    order; without evspec_msgs there is no such action, which is logged.
    """

    def __init__(self, node: Node, worker: Worker, guard: Guard) -> None:
        self._node = node
        self._worker = worker
        self._asked: dict[bytes, AskedNow] = {}  # by their goals' ids, until they are answered
        self._kind = kind = ask_type()
        self._server: Any = None
        if kind is None:
            node.get_logger().info(OWN_REMEDY.format("The action ~/ask is not offered"))
            return
        what = "A question could not be answered"
        self._server = ActionServer(
            node,
            kind,
            "~/ask",
            guard(what, self._answer, self._unanswered),
            goal_callback=guard(what, self._judge, lambda *_: GoalResponse.REJECT),
            handle_accepted_callback=guard(what, self._ask),
            cancel_callback=guard("A question could not be cancelled", self._cancel, _not_cancelled),
            result_timeout=RESULT_KEPT_S,
        )

    def close(self) -> None:
        """The action is gone; rclpy leaves that to whoever made it."""
        if self._server is not None:
            self._server.destroy()
            self._server = None

    def _judge(self, _: Any) -> GoalResponse:
        """Whether a question may be asked now."""
        if not self._worker.running:
            why = "the node is not active; activate it first."
        elif len(self._asked) >= MOST_WAITING:
            why = f"{MOST_WAITING} questions wait for their answers already; ask again later."
        else:
            return GoalResponse.ACCEPT
        self._node.get_logger().warning(f"A question came, but {why}")
        return GoalResponse.REJECT

    def _ask(self, goal: Any) -> None:
        feedback = self._kind.Feedback
        answer = Future(executor=self._node.executor)
        answer.add_done_callback(lambda _: None)  # a callback is what wakes the executor
        asked = AskedNow(
            goal.request.question.strip(), lambda text: goal.publish_feedback(feedback(text=text)), answer
        )
        self._asked[_id(goal)] = asked
        self._worker.ask(asked)
        goal.execute()

    def _cancel(self, goal: Any) -> CancelResponse:
        """End it: at once where it waits, else within a layer."""
        if (asked := self._asked.get(_id(goal))) is not None:
            asked.cancel()
        return CancelResponse.ACCEPT

    async def _answer(self, goal: Any) -> Any:
        """Wait for the answer, which is the result whatever came of it."""
        asked = self._asked[_id(goal)]
        try:
            answer: Answer = await asked.answer
        finally:
            del self._asked[_id(goal)]
        if not answer.problem:
            goal.succeed()
        elif goal.is_cancel_requested:
            goal.canceled()
        else:
            goal.abort()
        return answer_message(self._kind.Result, answer)

    def _unanswered(self, failure: Failure, _: Any) -> Any:
        return self._kind.Result(problem=failure.problem)


def _not_cancelled(*_: object) -> CancelResponse:
    return CancelResponse.REJECT


def _id(goal: Any) -> bytes:
    return bytes(goal.goal_id.uuid)
