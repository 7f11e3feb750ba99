"""The client's side of the relay, with predetermined messages."""

from collections.abc import Callable
from typing import Any

import orjson

from gym.relay.caller import (
    HELLO_S,
    PROBE_S,
    Action,
    Event,
    LostAnswer,
    Publish,
    Receive,
    RedisFailure,
    RelayAnswer,
    RelayConnection,
    RelayRequest,
    Subscribe,
)
from gym.relay.frames import FIRST_BYTES, PIECE_BYTES, WINDOW, Channels, Frame, decode

CHANNELS = Channels(prefix="farm")
GET = RelayRequest(method="GET", path="/v1/queues")


class Farm:
    """Server as a connection sees it; time passes only while the connection waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.line = RelayConnection(CHANNELS, "trainer", clock=lambda: self.now)
        self.frames: list[tuple[str, Frame]] = []
        self.waiting: list[bytes] = []
        self.heard: Callable[[str, Frame], Event] = lambda channel, frame: 1
        self.subscribed: Event = True
        self.actions: list[Action] = []

    def ask(self, ask: RelayRequest = GET, silence_s: float = 60.0) -> RelayAnswer | LostAnswer:
        steps = self.line.exchange(ask, silence_s=silence_s)
        event: Event = None
        try:
            action = next(steps)
            while True:
                self.actions.append(action)
                event = self._do(action)
                action = steps.send(event)
        except StopIteration as end:
            outcome: RelayAnswer | LostAnswer = end.value
            return outcome

    def _do(self, action: Action) -> Event:
        match action:
            case Subscribe():
                return self.subscribed
            case Publish(channel, data):
                frame = decode(data)
                assert frame is not None
                self.frames.append((channel, frame))
                return self.heard(channel, frame)
            case Receive(timeout_s):
                if self.waiting:
                    return self.waiting.pop(0)
                self.now += timeout_s
                return None

    def tell(self, kind: str, call: str, payload: bytes = b"", **head: Any) -> None:
        self.waiting.append(Frame(kind, call, head, payload).encode())

    def sent(self, kind: str) -> list[Frame]:
        return [frame for _, frame in self.frames if frame.kind == kind]


def answering(farm: Farm, *parts: bytes) -> None:
    """Answer every call with these parts."""

    def heard(_channel: str, frame: Frame) -> Event:
        if frame.kind == "hello":
            farm.tell("here", frame.call, server="s-1")
        if frame.kind == "ask":
            for number, part in enumerate(parts):
                kind, last = ("part" if number else "answer"), number == len(parts) - 1
                farm.tell(kind, frame.call, part, part=number, last=last, status=200, headers={"retry-after": "2"})
        return 1

    farm.heard = heard


def test_an_answer_comes_whole() -> None:
    farm = Farm()
    answering(farm, b"a", b"b", b"c")
    assert farm.ask() == RelayAnswer(status=200, headers={"retry-after": "2"}, body=b"abc")
    assert farm.line.usable


def test_a_line_that_knows_its_server_asks_at_once() -> None:
    farm = Farm()
    answering(farm, b"{}")
    farm.ask()
    farm.ask()
    assert [frame.kind for _, frame in farm.frames] == ["hello", "ask", "ask"]
    assert sum(isinstance(action, Subscribe) for action in farm.actions) == 1


def test_parts_that_come_twice_count_once_and_those_of_another_call_not_at_all() -> None:
    farm = Farm()
    answering(farm, b"a", b"b")
    inner = farm.heard

    def heard(channel: str, frame: Frame) -> Event:
        inner(channel, frame)
        if frame.kind == "ask":
            farm.waiting.insert(1, farm.waiting[0])
            farm.waiting.insert(0, Frame("answer", "another", {"part": 0, "last": True, "status": 500}).encode())
        return 1

    farm.heard = heard
    assert farm.ask() == RelayAnswer(status=200, headers={"retry-after": "2"}, body=b"ab")


def test_an_answer_with_a_hole_is_lost() -> None:
    farm = Farm()
    answering(farm, b"a", b"b", b"c")
    inner = farm.heard

    def heard(channel: str, frame: Frame) -> Event:
        inner(channel, frame)
        if frame.kind == "ask":
            del farm.waiting[1]
        return 1

    farm.heard = heard
    outcome = farm.ask()
    assert isinstance(outcome, LostAnswer)
    assert outcome.sent
    assert not farm.line.usable


def test_a_body_goes_out_piece_by_piece_as_it_is_taken() -> None:
    farm = Farm()
    taken: list[bytes] = []
    body = b"x" * (FIRST_BYTES + PIECE_BYTES + 5)

    def heard(_channel: str, frame: Frame) -> Event:
        if frame.kind == "hello":
            farm.tell("here", frame.call, server="s-1")
        if frame.kind in ("ask", "body"):
            taken.append(frame.payload)
            if frame.head["last"]:
                farm.tell("answer", frame.call, b"{}", part=0, last=True, status=201, headers={})
            else:
                farm.tell("more", frame.call, pieces=1)
        return 1

    farm.heard = heard
    outcome = farm.ask(RelayRequest(method="POST", path="/v1/batches", body=[body[:9], body[9:]]))
    assert isinstance(outcome, RelayAnswer)
    assert list(map(len, taken)) == [FIRST_BYTES, PIECE_BYTES, 5]
    assert b"".join(taken) == body


def test_an_answer_that_comes_before_the_body_is_taken_ends_the_call() -> None:
    farm = Farm()
    answering(farm, b"no")
    outcome = farm.ask(RelayRequest(method="POST", path="/v1/batches", body=[b"x" * (FIRST_BYTES + 1)]))
    assert isinstance(outcome, RelayAnswer)
    assert farm.sent("body") == []


def test_a_long_answer_is_paid_for_as_it_is_read() -> None:
    farm = Farm()
    answering(farm, *([b"x"] * (2 * WINDOW)))
    farm.ask()
    assert sum(frame.number("pieces") for frame in farm.sent("more")) >= WINDOW


def test_a_server_that_goes_away_is_noticed_while_its_answer_is_waited_for() -> None:
    farm = Farm()
    answering(farm)
    inner = farm.heard
    farm.heard = lambda channel, frame: 0 if frame.kind == "ping" else inner(channel, frame)
    outcome = farm.ask()
    assert isinstance(outcome, LostAnswer)
    assert outcome.sent
    assert farm.now == PROBE_S


def test_a_call_that_a_server_does_not_know_is_lost_at_once() -> None:
    farm = Farm()
    answering(farm)
    inner = farm.heard

    def heard(channel: str, frame: Frame) -> Event:
        if frame.kind == "ping":
            farm.tell("lost", frame.call)
        return inner(channel, frame)

    farm.heard = heard
    outcome = farm.ask()
    assert isinstance(outcome, LostAnswer)
    assert outcome.sent
    assert farm.now == PROBE_S


def test_silence_is_bounded() -> None:
    farm = Farm()
    answering(farm)
    outcome = farm.ask(silence_s=30)
    assert isinstance(outcome, LostAnswer)
    assert outcome.sent
    assert 30 <= farm.now <= 30 + PROBE_S
    assert len(farm.sent("ping")) == 14


def test_where_nobody_listens_nothing_was_sent() -> None:
    farm = Farm()
    farm.heard = lambda channel, frame: 0
    outcome = farm.ask()
    assert isinstance(outcome, LostAnswer)
    assert not outcome.sent
    assert "no farm listens" in outcome.reason
    assert farm.now == 0


def test_a_server_that_does_not_say_who_it_is_is_not_waited_for_long() -> None:
    farm = Farm()
    outcome = farm.ask(silence_s=600)
    assert isinstance(outcome, LostAnswer)
    assert not outcome.sent
    assert farm.now <= HELLO_S + PROBE_S


def test_a_server_that_was_replaced_is_found_again_within_the_call() -> None:
    farm = Farm()
    answering(farm, b"{}")
    farm.ask()
    inner = farm.heard

    def heard(channel: str, frame: Frame) -> Event:
        if frame.kind == "ask" and not farm.sent("hello")[1:]:
            return 0
        return inner(channel, frame)

    farm.heard = heard
    assert isinstance(farm.ask(), RelayAnswer)
    assert len(farm.sent("hello")) == 2


def test_a_user_who_may_only_read_asks_as_a_reader() -> None:
    farm = Farm()
    answering(farm, b"{}")
    inner = farm.heard
    farm.heard = lambda channel, frame: RedisFailure("NOPERM", 403) if ":submit:" in channel else inner(channel, frame)
    assert isinstance(farm.ask(), RelayAnswer)
    assert farm.frames[-1][0] == "farm:0:relay:ask:read:trainer:s-1"


def test_what_redis_refuses_is_an_error_of_the_apis_shape() -> None:
    farm = Farm()
    farm.subscribed = RedisFailure("WRONGPASS", 401)
    outcome = farm.ask()
    assert isinstance(outcome, RelayAnswer)
    assert outcome.status == 401
    assert orjson.loads(outcome.body)["error"]["code"] == "unauthorized"
    assert not farm.line.usable


def test_a_redis_that_breaks_before_the_request_left_says_that_it_was_not_sent() -> None:
    farm = Farm()
    farm.subscribed = RedisFailure("connection refused")
    assert farm.ask() == LostAnswer(reason="connection refused", sent=False)


def test_a_redis_that_breaks_while_the_request_leaves_says_that_it_may_have_been() -> None:
    farm = Farm()
    answering(farm)
    inner = farm.heard
    farm.heard = lambda channel, frame: RedisFailure("reset") if frame.kind == "ask" else inner(channel, frame)
    assert farm.ask() == LostAnswer(reason="reset", sent=True)


def test_a_redis_that_breaks_afterwards_says_that_it_may_have_been() -> None:
    farm = Farm()
    answering(farm)
    inner = farm.heard
    farm.heard = lambda channel, frame: RedisFailure("reset") if frame.kind == "ping" else inner(channel, frame)
    assert farm.ask() == LostAnswer(reason="reset", sent=True)
