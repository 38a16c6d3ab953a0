"""The mailbox: the latest request wins, what it replaces is counted, nobody waits in vain."""

from __future__ import annotations

import threading

from evspec_ros.ros.mailbox import Mailbox


def test_requests_not_yet_taken_are_replaced_and_counted() -> None:
    """Three requests before the first is taken are one request, and two were replaced."""
    mailbox: Mailbox[str] = Mailbox()
    for _ in range(3):
        mailbox.offer()
    assert mailbox.take() == []
    assert mailbox.replaced == 2
    mailbox.offer()
    assert mailbox.replaced == 2
    mailbox.reset_count()
    assert mailbox.replaced == 0


def test_every_waiter_is_handed_over_once() -> None:
    """Who asks for an answer gets one, even where the request itself was replaced."""
    mailbox: Mailbox[str] = Mailbox()
    mailbox.offer("first")
    mailbox.offer()
    mailbox.offer("second")
    assert mailbox.take() == ["first", "second"]
    mailbox.offer()
    assert mailbox.take() == []


def test_closing_wakes_the_worker_and_returns_the_waiters() -> None:
    """A worker that waits for a request ends when the mailbox is closed; later requests wake nobody."""
    mailbox: Mailbox[str] = Mailbox()
    taken: list[list[str] | None] = []
    worker = threading.Thread(target=lambda: taken.append(mailbox.take()))
    worker.start()
    assert mailbox.close() == []
    worker.join(timeout=10)
    assert taken == [None]
    mailbox.offer("late")
    assert mailbox.closed
    assert mailbox.take() is None
    assert mailbox.close() == ["late"]
