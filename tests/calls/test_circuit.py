"""A circuit's legal moves, and a connector that crashes on every call."""

from __future__ import annotations

import pytest

from gateway.calls.circuit import COOLDOWN, FAILURES, LONGEST, Circuit, CircuitState
from gateway.errors import ConnectorUnavailable
from gateway.observe.events import Bus, CircuitClosed, CircuitOpened, Event
from tests.support import Server, Site, eventually, served

ANY = "commands: {Go: {additional_parameters: true}}"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def circuit(clock: Clock, events: list[Event]) -> Circuit:
    bus = Bus()
    bus.listen(events.append)
    return Circuit("fax", bus, clock)


def open_it(circuit: Circuit) -> None:
    for _ in range(FAILURES):
        circuit.admit()
        circuit.failed("died of SIGSEGV")


def open_again(circuit: Circuit, clock: Clock) -> float:
    """Let a probe fail; return the new cooldown."""
    circuit.admit()
    circuit.failed("died of SIGSEGV")
    with pytest.raises(ConnectorUnavailable) as refused:
        circuit.admit()
    cooldown = refused.value.retry_after
    assert cooldown is not None
    clock.now += cooldown
    return cooldown


def test_a_new_circuit_lets_calls_pass(circuit: Circuit) -> None:
    circuit.admit()
    assert circuit.state is CircuitState.CLOSED


def test_fewer_failures_than_the_limit_leave_it_closed(circuit: Circuit, events: list[Event]) -> None:
    for _ in range(FAILURES - 1):
        circuit.failed("died of SIGSEGV")
    circuit.admit()
    assert circuit.state is CircuitState.CLOSED
    assert events == []


def test_a_success_between_failures_starts_the_count_again(circuit: Circuit) -> None:
    for _ in range(3):
        for _ in range(FAILURES - 1):
            circuit.failed("died of SIGSEGV")
        circuit.succeeded()
    assert circuit.state is CircuitState.CLOSED


def test_an_undecided_end_neither_counts_nor_resets(circuit: Circuit) -> None:
    for _ in range(FAILURES - 1):
        circuit.failed("died of SIGSEGV")
        circuit.undecided()
    assert circuit.state is CircuitState.CLOSED
    circuit.failed("died of SIGSEGV")
    assert circuit.state is CircuitState.OPEN


def test_so_many_failures_in_a_row_open_it_and_say_so_once(circuit: Circuit, events: list[Event]) -> None:
    open_it(circuit)
    assert circuit.state is CircuitState.OPEN
    assert events == [CircuitOpened(connector="fax", reason="died of SIGSEGV", cooldown=COOLDOWN)]


def test_an_open_circuit_refuses_with_the_reason_and_when_to_come_back(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.now += 1.5
    with pytest.raises(ConnectorUnavailable, match=r"failed 5 times in a row, .*died of SIGSEGV.* in 3.5 s") as refused:
        circuit.admit()
    assert refused.value.retry_after == 4


def test_a_straggler_that_fails_does_not_prolong_the_wait(circuit: Circuit, clock: Clock, events: list[Event]) -> None:
    open_it(circuit)
    clock.now += COOLDOWN - 0.1
    circuit.failed("died of SIGKILL")
    assert len(events) == 1
    clock.now += 0.1
    circuit.admit()
    assert circuit.state is CircuitState.HALF_OPEN


def test_a_straggler_that_succeeds_closes_it(circuit: Circuit, events: list[Event]) -> None:
    open_it(circuit)
    circuit.succeeded()
    circuit.admit()
    assert circuit.state is CircuitState.CLOSED
    assert events[-1] == CircuitClosed(connector="fax")


def test_after_the_cooldown_exactly_one_call_is_the_probe(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.now += COOLDOWN
    circuit.admit()
    assert circuit.state is CircuitState.HALF_OPEN
    for _ in range(3):
        with pytest.raises(ConnectorUnavailable) as refused:
            circuit.admit()
        assert refused.value.retry_after == 1


def test_a_probe_that_succeeds_closes_it_and_forgets(circuit: Circuit, clock: Clock, events: list[Event]) -> None:
    open_it(circuit)
    clock.now += COOLDOWN
    circuit.admit()
    circuit.succeeded()
    assert circuit.state is CircuitState.CLOSED
    assert events[-1] == CircuitClosed(connector="fax")
    for _ in range(FAILURES - 1):
        circuit.failed("died of SIGSEGV")
    assert circuit.state is CircuitState.CLOSED


def test_each_probe_that_fails_doubles_the_cooldown_up_to_a_minute(
    circuit: Circuit, clock: Clock, events: list[Event]
) -> None:
    open_it(circuit)
    clock.now += COOLDOWN
    assert [open_again(circuit, clock) for _ in range(6)] == [10, 20, 40, 60, 60, 60]
    opened = [event.cooldown for event in events if isinstance(event, CircuitOpened)]
    assert opened == [COOLDOWN, 10, 20, 40, LONGEST, LONGEST, LONGEST]


def test_a_success_resets_the_cooldown(circuit: Circuit, clock: Clock, events: list[Event]) -> None:
    open_it(circuit)
    clock.now += COOLDOWN
    open_again(circuit, clock)
    circuit.succeeded()
    open_it(circuit)
    assert isinstance(events[-1], CircuitOpened)
    assert events[-1].cooldown == COOLDOWN


def test_a_probe_without_a_verdict_is_made_again_at_once(circuit: Circuit, clock: Clock) -> None:
    open_it(circuit)
    clock.now += COOLDOWN
    circuit.admit()
    circuit.undecided()
    assert circuit.state is CircuitState.OPEN
    circuit.admit()
    assert circuit.state is CircuitState.HALF_OPEN


# --- over HTTP


async def opened(gateway: Server, target: str, status: int, code: str) -> None:
    for _ in range(FAILURES):
        answer = await gateway.do(target)
        assert (answer.status, answer.code) == (status, code)


async def test_a_connector_that_crashes_on_every_call_is_left_alone_until_it_works_again(site: Site) -> None:
    site.script(
        "fragile.sh",
        f"""
        echo >> {site.folder}/starts
        [ -e {site.folder}/mended ] || kill -SEGV $$
        cat
        """,
    )
    site.script("healthy.sh", "cat")
    site.configure(f"fragile: {{run: [./fragile.sh], {ANY}}}\nhealthy: {{run: [./healthy.sh], {ANY}}}")
    async with served(site) as gateway:
        await opened(gateway, "fragile/Go", 502, "connector_crashed")
        refused = await gateway.do("fragile/Go")
        assert (refused.status, refused.code) == (503, "connector_unavailable")
        assert "fragile/Go: it failed 5 times in a row, the last time: died of SIGSEGV" in refused.message
        assert 1 <= int(refused.headers["Retry-After"]) <= COOLDOWN
        assert len((site.folder / "starts").read_text().splitlines()) == FAILURES
        status = await gateway.status("fragile")
        assert (status["circuit"], status["reason"]) == ("open", "died of SIGSEGV")
        assert "fragile/Go" in await gateway.commands()
        assert (await gateway.do("healthy/Go")).status == 200
        assert gateway.events("circuit_opened", connector="fragile", level="error", reason="died of SIGSEGV")

        (site.folder / "mended").touch()

        async def works() -> bool:
            return (await gateway.do("fragile/Go")).status == 200

        await eventually(works)
        assert gateway.events("circuit_closed", connector="fragile")
        status = await gateway.status("fragile")
        assert (status["circuit"], status["reason"]) == ("closed", None)


async def test_starts_that_fail_open_the_circuit_and_a_mended_executable_starts_afresh(site: Site) -> None:
    broken = site.folder / "broken"
    broken.write_bytes(b"\x00this is no program")
    broken.chmod(0o755)
    site.configure(f"broken: {{run: [./broken], {ANY}}}")
    async with served(site) as gateway:
        await opened(gateway, "broken/Go", 502, "connector_start_failed")
        refused = await gateway.do("broken/Go")
        assert (refused.status, refused.code) == (503, "connector_unavailable")
        assert "Exec format error" in refused.message

        site.script("new", "cat").rename(broken)

        async def works() -> bool:
            return (await gateway.do("broken/Go")).status == 200

        await eventually(works, COOLDOWN)
        assert (await gateway.status("broken"))["circuit"] == "closed"


async def test_failures_that_are_no_crash_do_not_open_the_circuit(site: Site) -> None:
    site.script("wrong.sh", "echo nonsense; exit 7")
    site.script("slow.sh", "exec sleep 1000")
    site.configure(f"wrong: {{run: [./wrong.sh], {ANY}}}\nslow: {{run: [./slow.sh], timeout: 50ms, {ANY}}}")
    async with served(site) as gateway:
        for target, status in (("wrong/Go", 502), ("slow/Go", 504)):
            for _ in range(FAILURES + 1):
                assert (await gateway.do(target)).status == status
