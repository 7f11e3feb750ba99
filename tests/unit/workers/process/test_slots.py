from workers.process.slots import Slots


def test_the_gate_closes_when_the_slots_are_taken_and_says_when_it_opens() -> None:
    slots = Slots(4)
    opened: list[int] = []
    slots.notify(lambda: opened.append(slots.taken))
    slots.reserve(3)
    assert slots.has_room()
    slots.reserve(3)
    assert not slots.has_room()
    slots.free()
    slots.free()
    assert opened == []
    slots.free()
    assert opened == [3]
    assert slots.has_room()


def test_freeing_while_there_is_room_wakes_nobody() -> None:
    slots = Slots(4)
    slots.notify(lambda: (_ for _ in ()).throw(AssertionError))
    slots.reserve(2)
    slots.free(2)
    assert slots.taken == 0


def test_a_closed_gate_stays_closed() -> None:
    slots = Slots(4)
    slots.close()
    assert not slots.has_room()


def test_a_worker_that_is_held_fetches_nothing_and_says_when_it_does_again() -> None:
    slots = Slots(4)
    opened: list[bool] = []
    slots.notify(lambda: opened.append(slots.has_room()))
    slots.reserve(1)
    slots.hold()
    slots.free()
    assert slots.held
    assert not slots.has_room()
    assert slots.taken == 0
    slots.release()
    assert opened == [True]
    assert not slots.held
