from __future__ import annotations

import ipaddress

import pytest

from p2pdfl.scenario.relay import DelayQueue, destination

PACKET = bytes(1000)


def test_a_packet_arrives_after_the_delay_and_not_before() -> None:
    queue = DelayQueue(delay_s=0.1)
    assert queue.next_s is None
    queue.send(b"one", "a", 5.0)
    assert queue.next_s == pytest.approx(5.1)
    assert queue.arrived(5.09) == []
    assert queue.arrived(5.11) == [("a", b"one")]
    assert queue.arrived(9.0) == []


def test_packets_arrive_in_the_order_in_which_they_were_sent() -> None:
    queue = DelayQueue(delay_s=0.1)
    sent = [(receiver, bytes([number])) for number, receiver in enumerate("abcab")]
    for receiver, packet in sent:
        queue.send(packet, receiver, 1.0)
    assert queue.arrived(2.0) == sent


def test_a_receivers_link_takes_one_packet_after_the_other() -> None:
    queue = DelayQueue(delay_s=0.1, bytes_per_s=10_000, backlog_s=1.0)
    for _ in range(3):
        queue.send(PACKET, "a", 0.0)
    # 100 ms on the way, then 100 ms each on the link
    assert len(queue.arrived(0.19)) == 0
    assert len(queue.arrived(0.21)) == 1
    assert len(queue.arrived(0.41)) == 2


def test_receivers_do_not_wait_for_each_others_links() -> None:
    queue = DelayQueue(delay_s=0.1, bytes_per_s=10_000, backlog_s=1.0)
    for receiver in "abc":
        queue.send(PACKET, receiver, 0.0)
    assert [receiver for receiver, _ in queue.arrived(0.21)] == ["a", "b", "c"]


def test_a_link_that_was_idle_does_not_make_up_for_it() -> None:
    queue = DelayQueue(delay_s=0.1, bytes_per_s=10_000, backlog_s=1.0)
    queue.send(PACKET, "a", 0.0)
    queue.send(PACKET, "a", 100.0)
    queue.send(PACKET, "a", 100.0)
    assert len(queue.arrived(100.0)) == 1
    assert len(queue.arrived(100.21)) == 1
    assert queue.next_s == pytest.approx(100.3)


def test_packets_that_would_wait_too_long_for_a_link_are_lost() -> None:
    queue = DelayQueue(delay_s=0.1, bytes_per_s=10_000, backlog_s=0.25)
    for _ in range(10):
        queue.send(PACKET, "a", 0.0)
    queue.send(PACKET, "b", 0.0)
    assert queue.lost == {"receiver's link is full": 7}
    assert [receiver for receiver, _ in queue.arrived(9.0)] == ["a", "b", "a", "a"]


def test_no_more_packets_than_the_bound_are_on_their_way() -> None:
    queue = DelayQueue(delay_s=0.1, packets_max=2)
    for _ in range(3):
        queue.send(PACKET, "a", 0.0)
    assert queue.lost == {"too many on their way": 1}
    assert len(queue.arrived(1.0)) == 2
    queue.send(PACKET, "a", 1.0)
    assert len(queue.arrived(2.0)) == 1


def test_a_packet_goes_where_its_header_says() -> None:
    header = bytes([0x45]) + bytes(15) + ipaddress.IPv4Address("10.77.0.3").packed
    assert destination(header + b"payload") == "10.77.0.3"
    assert destination(header[:19]) is None
    assert destination(b"") is None
    assert destination(bytes([0x60]) + header[1:] + bytes(40)) is None
