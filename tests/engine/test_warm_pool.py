"""What a pool does next: it converges, keeps its limits, and does not flap."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from forebay_engine.warm.pool import (
    CRASH_PAUSE_MAX_S,
    Action,
    Desired,
    Limits,
    Member,
    Planner,
    crash_pause_s,
)
from hypothesis import given, settings
from hypothesis import strategies as st

Park = Literal["stop", "memory", "gate"]


def planned(
    desired: Desired,
    *members: Member,
    limits: Limits = Limits(1, 0.0),  # noqa: B008 (frozen)
    park: Park = "stop",
) -> list[tuple[str, int]]:
    """The deeds of a planner that has seen nothing before."""
    return [(a.deed, a.index) for a in Planner(limits, park).plan(desired, members, 100.0)]


def cold(index: int, *, parked: bool = False, pinned: bool = False, place: int = -1) -> Member:
    where = index if place < 0 else place
    return Member(index, "cold", parked=parked, pinned=pinned, place=where)


def warm(index: int, since_s: float = 10.0, requests: int = 0, *, pinned: bool = False) -> Member:
    return Member(index, "warm", since_s=since_s, requests=requests, pinned=pinned, place=index)


def test_starts_go_a_few_at_a_time_and_parked_ones_first() -> None:
    members = (cold(0), cold(1), cold(2, parked=True), cold(3))
    assert planned(Desired(3), *members) == [("wake", 2)]
    two = Limits(2, 0.0)
    assert planned(Desired(3), *members, limits=two) == [("wake", 2), ("wake", 0)]
    loading = Member(0, "loading", place=0)
    assert planned(Desired(3), loading, cold(1), cold(2), limits=two) == [("wake", 1)]
    assert planned(Desired(3), loading, cold(1), cold(2)) == []


def test_the_least_loaded_goes_and_of_these_the_newest() -> None:
    members = (warm(0, 50), warm(1, 40, requests=2), warm(2, 30), warm(3, 20, requests=1))
    assert planned(Desired(3), *members) == [("rest", 2)]
    assert planned(Desired(1), *members) == [("rest", 2), ("rest", 0), ("rest", 3)]
    assert planned(Desired(0), *members) == [("rest", i) for i in (2, 0, 3, 1)]


def test_it_parks_before_it_ends() -> None:
    members = (warm(0, 50), warm(1, 40), warm(2, 30))
    assert planned(Desired(1, 1), *members, park="memory") == [("park", 2), ("rest", 1)]
    assert planned(Desired(2, 1), *members, park="memory") == [("park", 2)]
    assert planned(Desired(1, 1), warm(0), cold(1, parked=True), warm(2), park="memory") == [
        ("rest", 2)
    ]


def test_what_loads_goes_before_what_serves_and_none_that_is_needed() -> None:
    loading = Member(1, "loading", place=1)
    assert planned(Desired(1), warm(0), loading) == [("rest", 1)]
    assert planned(Desired(1), loading, Member(0, "loading", place=0)) == []
    assert planned(Desired(1), warm(0), Member(1, "draining", place=1)) == []


def test_memory_is_released_by_an_engine_that_was_started_for_it() -> None:
    assert planned(Desired(1, 1), warm(0), cold(1), park="memory") == [("wake", 1)]
    loading = Member(1, "loading", place=1)
    assert planned(Desired(1, 1), warm(0), loading, park="memory") == [], "it goes on"
    assert planned(Desired(1, 1), warm(0), warm(1, 1), park="memory") == [("park", 1)]
    assert planned(Desired(1, 1), warm(0), cold(1, parked=True), park="memory") == []


def test_a_gated_process_is_brought_up_beside_a_warm_one_on_the_same_gpu() -> None:
    beside = (replace(warm(0), place=0), cold(1, place=0))
    assert planned(Desired(1, 1), *beside, park="gate") == [("park", 1)]
    parked = (replace(warm(0), place=0), cold(1, parked=True, place=0))
    assert planned(Desired(2, 0), *parked, park="gate", limits=Limits(2, 1e9)) == []
    crashed = (Member(0, "down", crashed=True, pause_s=30, place=0), parked[1])
    assert planned(Desired(1, 1), *crashed, park="gate") == [("wake", 1)]


def test_a_member_that_crashed_waits_and_another_takes_its_place() -> None:
    down = Member(0, "down", crashed=True, pause_s=12.0, place=0)
    assert planned(Desired(1), down) == []
    assert planned(Desired(1), down, cold(1)) == [("wake", 1)]
    assert planned(Desired(1), replace(down, pause_s=0.0)) == [("rest", 0)], "it is cold again"
    assert [crash_pause_s(n) for n in (1, 2, 3)] == [30.0, 60.0, 120.0]
    assert crash_pause_s(1000) == CRASH_PAUSE_MAX_S


def test_a_member_that_was_drained_is_left_alone_until_it_is_woken() -> None:
    drained = Member(0, "down", place=0)
    assert planned(Desired(1), drained) == []
    assert planned(Desired(1), replace(drained, pinned=True)) == [("wake", 0)]


def test_what_requests_have_woken_comes_on_top_and_stays() -> None:
    assert planned(Desired(0), cold(0, pinned=True)) == [("wake", 0)]
    assert planned(Desired(1), warm(0), cold(1, pinned=True), cold(2)) == [("wake", 1)]
    assert planned(Desired(1), warm(0), warm(1, 5, pinned=True)) == []
    assert planned(Desired(1), warm(0), warm(1, 5)) == [("rest", 1)]


def test_a_surplus_has_to_last() -> None:
    planner = Planner(Limits(1, 30.0), "stop")
    both = (warm(0, 50), warm(1, 40))
    assert planner.plan(Desired(1), both, 0.0) == []
    assert planner.plan(Desired(1), both, 29.0) == []
    assert planner.plan(Desired(2), both, 29.5) == [], "wanted again: it begins anew"
    assert planner.plan(Desired(1), both, 31.0) == []
    assert planner.plan(Desired(1), both, 60.0) == []
    assert planner.plan(Desired(1), both, 61.0) == [Action("rest", 1)]


def test_parked_ones_too_many_end() -> None:
    members = (warm(0), cold(1, parked=True), cold(2, parked=True))
    assert planned(Desired(1, 1), *members, park="memory") == [("rest", 2)]


@dataclass
class World:
    """Members that start, park and end after some ticks, as engines do."""

    park: Park
    members: list[Member]
    left: dict[int, int] = field(default_factory=dict)
    then: dict[int, Member] = field(default_factory=dict)

    def do(self, action: Action, ticks: int) -> None:
        member = self.members[action.index]
        if action.index in self.then and not (member.awake or member.starting):
            return
        during, after = self._course(member, action)
        self.members[action.index] = replace(during, since_s=0.0)
        self.left[action.index], self.then[action.index] = ticks, replace(after, since_s=0.0)

    def _course(self, member: Member, action: Action) -> tuple[Member, Member]:
        rested = replace(
            member,
            state="cold",
            parked=False,
            starting=False,
            parking=False,
            requests=0,
            crashed=False,
        )
        match action.deed:
            case "wake":
                loading = replace(rested, state="loading")
                return loading, replace(loading, state="warm")
            case "park" if member.state == "cold":
                return replace(member, starting=True), replace(rested, parked=True)
            case "park":
                return replace(member, state="draining", parking=True), replace(rested, parked=True)
            case _:
                if member.parked:
                    return replace(member, state="draining", parked=False), rested
                return replace(member, state="draining"), rested

    def tick(self) -> None:
        self.members = [replace(m, since_s=m.since_s + 1) for m in self.members]
        for index in list(self.left):
            self.left[index] -= 1
            if self.left[index] <= 0:
                self.members[index] = self.then.pop(index)
                del self.left[index]

    def crash(self, index: int) -> None:
        member = self.members[index]
        if member.state == "cold" and not member.parked:
            return
        self.left.pop(index, None)
        self.then.pop(index, None)
        self.members[index] = replace(
            member,
            state="down",
            parked=False,
            starting=False,
            parking=False,
            crashed=True,
            pause_s=0.0,
        )

    @property
    def under_way(self) -> int:
        return sum(m.state == "loading" or m.starting for m in self.members)

    def count(self, state: str) -> int:
        return sum(m.state == state for m in self.members)

    @property
    def parked(self) -> int:
        return sum(m.parked and m.state == "cold" for m in self.members)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Park, int, Limits, list[tuple[Desired, int]]]:
    park: Park = draw(st.sampled_from(("stop", "memory", "gate")))
    size = draw(st.integers(1, 6))
    limits = Limits(draw(st.integers(1, 3)), float(draw(st.integers(0, 5))))
    wants = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(0, size))
        parked = 0 if park == "stop" else draw(st.integers(0, size - count))
        crashes = draw(st.integers(-1, size - 1))
        wants.append((Desired(count, parked), crashes))
    return park, size, limits, wants


@settings(deadline=None, max_examples=40)
@given(scenes(), st.randoms(use_true_random=False))
def test_it_converges_keeps_its_limits_and_then_rests(
    scene: tuple[Park, int, Limits, list[tuple[Desired, int]]], random: object
) -> None:
    park, size, limits, wants = scene
    planner = Planner(limits, park)
    world = World(park, [cold(i) for i in range(size)])
    now = 0.0
    for desired, crashing in wants:
        if crashing >= 0:
            world.crash(crashing)
        quiet = 0
        # A pause after members that died parked is 600 s at most.
        for _ in range(900):
            warm_before = world.count("warm")
            actions = planner.plan(desired, world.members, now)
            assert len({action.index for action in actions}) == len(actions)
            for action in actions:
                world.do(action, random.randint(1, 4))  # type: ignore[attr-defined]
            assert world.under_way <= limits.max_parallel
            assert world.count("warm") >= min(warm_before, desired.warm)
            quiet = 0 if actions or world.left else quiet + 1
            world.tick()
            now += 1.0
            if quiet > 8:
                break
        assert quiet > 8, (desired, world.members)
        assert world.count("warm") == desired.warm
        assert world.parked == (0 if park == "stop" else desired.parked)


@pytest.mark.parametrize("park", ["stop", "memory", "gate"])
def test_a_pool_that_is_as_wanted_is_left_alone(park: Park) -> None:
    members = (warm(0), warm(1, requests=9), cold(2, parked=park != "stop"), cold(3))
    desired = Desired(2, 0 if park == "stop" else 1)
    assert planned(desired, *members, park=park, limits=Limits(4, 0.0)) == []
