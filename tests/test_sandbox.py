"""What is asked of a cell, and what is said of a machine that does not give it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from gateway.sandbox import (
    OFF,
    STANDARD,
    STRICT,
    Given,
    Level,
    Sandbox,
    Step,
    asked,
    given,
    lacking,
    missing,
    options,
    refused,
    switch,
)

if TYPE_CHECKING:
    from pathlib import Path

ALL = ~0
STANDARD_ONE = Sandbox(level=STANDARD, hide=("/srv/gateway/connectors.yaml",), private_tmp=True)
STRICT_ONE = msgspec.structs.replace(STANDARD_ONE, level=STRICT, network="none", user=(7, 8))


@pytest.mark.parametrize(("value", "level"), [("off", OFF), ("standard", STANDARD), ("strict", STRICT)])
def test_a_level_is_read_by_its_name(value: object, level: str) -> None:
    assert Level.parse(value) == level


@pytest.mark.parametrize("value", [True, False, None, "", "Strict", "none", 0, 1, ["off"]])
def test_anything_else_is_no_level(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not a level: write off, standard or strict"):
        Level.parse(value)


# --- options


def test_off_asks_for_bounds_alone() -> None:
    assert options(Sandbox(max_pids=9), 1 << 20) == ("--max-pids", "9")
    assert options(Sandbox(user=(7, 8)), 0) == ("--user", "7:8", "--max-pids", "512")


def test_standard_asks_for_all_but_what_is_for_strict_alone() -> None:
    assert options(STANDARD_ONE, 64 << 20) == (
        "--namespaces",
        *("--private-tmp", str(64 << 20)),
        *("--hide", "/srv/gateway/connectors.yaml"),
        "--filter",
        *("--max-disk", str(1 << 30)),
        *("--oom", "500"),
        *("--max-pids", "512"),
    )


def test_strict_opens_what_is_named() -> None:
    found = options(msgspec.structs.replace(STRICT_ONE, read=("/data",), write=("/spool",)), 1)
    assert {"--no-network", "--restrict", "--filter"} <= set(found)
    text = " ".join(found)
    assert "--restrict --read /data" in text
    assert "--write /spool" in text
    assert "--user 7:8" in text


def test_without_a_bound_of_memory_temporary_files_have_that_of_the_disk() -> None:
    assert "--private-tmp 77 " in " ".join(options(msgspec.structs.replace(STANDARD_ONE, max_disk=77), 0))


def test_what_holds_a_path_comes_before_it() -> None:
    found = options(
        Sandbox(
            level=STANDARD,
            hide=("/a/b/c", "/a"),
            show=("/a/b",),
            guard=("/a-b",),
            write=("/a/b/c/d",),
        ),
        1,
    )
    paths = [word for word in found if word.startswith("/")]
    assert paths == ["/a", "/a/b", "/a/b/c", "/a/b/c/d", "/a-b"]


# --- what there is of it


def test_nothing_is_missing_where_all_steps_are_there() -> None:
    for sandbox in (Sandbox(), STANDARD_ONE, STRICT_ONE):
        assert missing(sandbox, ALL) == ()
        assert refused(sandbox, ALL) is None


def test_off_misses_nothing_anywhere() -> None:
    assert asked(Sandbox()) == 0
    assert given(Sandbox(), 0) == Given(level=OFF, network="host", missing=())


def test_of_two_ways_to_one_end_one_is_enough() -> None:
    for way in (Step.MOUNTS, Step.LANDLOCK):
        assert not lacking(STANDARD_ONE, ALL & ~(Step.MOUNTS | Step.LANDLOCK) | way)
    for way in (Step.NETWORK, Step.NETWORK_FILTER):
        assert refused(STRICT_ONE, ALL & ~(Step.NETWORK | Step.NETWORK_FILTER) | way) is None


def test_standard_goes_on_without_what_the_machine_refuses_and_says_so() -> None:
    told = missing(STANDARD_ONE, 0)
    assert len(told) == 5
    assert all("(" in one for one in told)  # what switches it on
    assert refused(STANDARD_ONE, 0) is None


@pytest.mark.parametrize(
    "step", [Step.NAMESPACES, Step.PRIVATE_TMP, Step.RESTRICT, Step.FILTER, Step.USER, Step.MOUNTS | Step.LANDLOCK,
             Step.NETWORK | Step.NETWORK_FILTER],
)  # fmt: skip
def test_strict_goes_without_nothing(step: Step) -> None:
    reason = refused(STRICT_ONE, ALL & ~step)
    assert reason is not None
    assert reason.startswith("sandbox: strict cannot be had on this machine")


def test_a_bound_that_is_held_by_looking_is_told_and_no_reason_to_refuse() -> None:
    as_gateway = msgspec.structs.replace(STRICT_ONE, user=None)
    assert refused(as_gateway, ALL & ~Step.PIDS) is None
    assert len(missing(as_gateway, ALL & ~Step.PIDS)) == 1
    assert missing(STRICT_ONE, ALL & ~Step.PIDS) == ()  # of its own user the kernel counts the processes


def test_what_was_named_is_not_left_out_at_any_level() -> None:
    no_network = msgspec.structs.replace(STANDARD_ONE, network="none")
    assert "network: none cannot be kept" in (refused(no_network, ALL & ~(Step.NETWORK | Step.NETWORK_FILTER)) or "")
    for sandbox in (Sandbox(user=(7, 8)), msgspec.structs.replace(STANDARD_ONE, user=(7, 8))):
        assert "gateway.sandbox_uids" in (refused(sandbox, ALL & ~Step.USER) or "")


def test_the_switch_that_is_off_is_named(tmp_path: Path) -> None:
    assert "unprivileged_userns_clone" in switch(Step.NAMESPACES, tmp_path)  # nothing is known: all that it may be
    kernel = tmp_path / "proc/sys/kernel"
    kernel.mkdir(parents=True)
    (kernel / "unprivileged_userns_clone").write_text("1\n")
    (kernel / "apparmor_restrict_unprivileged_userns").write_text("1\n")
    assert switch(Step.NAMESPACES, tmp_path) == "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    (tmp_path / ".dockerenv").touch()
    assert "systempaths=unconfined" in switch(Step.PRIVATE_TMP, tmp_path)
