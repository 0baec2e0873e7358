"""Every parameter of every public class and function is refused by its own name when it is given
what it does not take: the error says what that was, and what is taken."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import vhost_user as vu

from .disks import RamDisk

BIG = 1 << 70
NAN = float("nan")

FLAG: tuple[object, ...] = (5, "no", None, [], 0.0)
NUMBER: tuple[object, ...] = ("no", 2.5, None, [], -1, BIG)
OPTIONAL_NUMBER: tuple[object, ...] = ("no", 2.5, [], -1, BIG)
SECONDS: tuple[object, ...] = ("no", None, [], NAN, 86401.0, BIG)
PATH: tuple[object, ...] = (5, [], 2.5)
WORD: tuple[object, ...] = ("no", 5, None, [])

Call = Callable[..., object]


class World:
    """What the calls work on."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.image.write_bytes(bytes(1 << 20))
        self.socket = folder / "socket"
        self.disk = RamDisk()
        self.backend = stack.enter_context(vu.Backend(self.disk, socket=self.socket))
        self.driver = stack.enter_context(vu.VirtioBlkDriver(self.socket, timeout=60))


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        yield World(stack, Path(folder))


class Plain(vu.Device):
    device_id = 4

    def on_queue(self, queue: vu.Queue, /) -> None:
        """Leaves everything in the ring."""


def backend(world: World, **given: Any) -> object:
    needed = {} if {"socket", "fd"} & set(given) else {"socket": "x"}
    return vu.Backend(RamDisk(), **{**needed, **given})


def behind_blk(world: World, **given: Any) -> object:
    with vu.testing.blk(RamDisk(), **given) as driver:
        return driver


def frontend(world: World, **given: Any) -> object:
    needed = {} if {"socket", "fd"} & set(given) else {"socket": world.socket}
    return vu.Frontend(**{**needed, **given})


def driver(world: World, **given: Any) -> object:
    needed = {} if {"socket", "fd"} & set(given) else {"socket": world.socket}
    return vu.VirtioBlkDriver(**{**needed, **given})


def load(world: World, **given: Any) -> object:
    needed = {} if {"seconds", "ops"} & set(given) else {"ops": 1}
    return world.driver.run_load(**{**needed, **given})


QUEUES = {"num_queues": (*NUMBER, 0), "queue_size": (*NUMBER, 3)}
DISK = {
    **QUEUES,
    "block_size": (*NUMBER, 77),
    "read_only": FLAG,
    "serial": (5, None, b"x", "x" * 21),
    "max_request_bytes": (*NUMBER, 0),
}
RINGS = {"packed": FLAG, "in_order": FLAG}

TAKEN: list[tuple[Callable[..., Any], Callable[..., Any], dict[str, tuple[object, ...]]]] = [
    (
        vu.Backend.__init__,
        backend,
        {
            "device": (),
            "socket": (*PATH, "", "a\0b"),
            "fd": OPTIONAL_NUMBER,
            "connect": FLAG,
            "keep_listening": FLAG,
            "mode": NUMBER,
            "group": (2.5, [], -1, BIG),
            "threads": (*NUMBER, 0, 65536),
            "batch": (*NUMBER, 0, 32769),
            "poll_us": (*NUMBER, 1000001),
            "cpus": ("no", 5, 2.5, [-1], [65536]),
            "copy_budget": NUMBER,
            "drain": (*SECONDS, -1),
            "any_memory_file": FLAG,
            "on_error": WORD,
            "xen": (5, "no", [], True),
            "metrics": (5, True, [], "off", "unix:", "0.0.0.0:9100"),
            "control": (*PATH, "", "a\0b"),
        },
    ),
    (vu.Backend.stop, lambda w, **g: w.backend.stop(**g), {"drain": SECONDS}),
    (
        vu.Backend.wait_running,
        lambda w, **g: w.backend.wait_running(**g),
        {"timeout": ("no", [], NAN, 86401.0)},
    ),
    (vu.set_total_copy_budget, lambda w, **g: vu.set_total_copy_budget(**g), {"size": NUMBER}),
    (
        vu.Device.__init__,
        lambda w, **g: Plain(**g),
        {
            **QUEUES,
            "features": NUMBER,
            "config": (5, "no", None, bytes(257)),
            "receive_queues": ("no", 5, None, (-1,), (1,)),
            "max_request_bytes": (*NUMBER, 0),
        },
    ),
    (
        vu.devices.block.Disk.__init__,
        lambda w, **g: vu.NullDisk(**{"size": 1 << 20, **g}),
        {**DISK, "size": (*NUMBER, 0, 513)},
    ),
    (vu.devices.block.Disk.resize, lambda w, **g: w.disk.resize(**g), {"size": (*NUMBER, 513)}),
    (
        vu.FileDisk.__init__,
        lambda w, **g: vu.FileDisk(**{"path": w.image, **g}),
        {
            **DISK,
            "block_size": ("no", 2.5, [], -1, BIG, 77),
            "path": (*PATH, None, ""),
            "direct": FLAG,
            "incoming": FLAG,
        },
    ),
    (
        vu.XenOptions.__init__,
        lambda w, **g: vu.XenOptions(**g),
        {
            "design": WORD,
            "copy_below": ("no", 2.5, [], -1, BIG),
            "domain": ("no", 2.5, [], -1, 32752),
            "raw_views": FLAG,
        },
    ),
    (
        vu.testing.XenGuest.__new__,
        lambda w, **g: vu.testing.XenGuest(**g),
        {
            "mapping": WORD,
            "design": WORD,
            "no_advance": ("no", 5, None),
            "memory": NUMBER,
            "domain": (*NUMBER, 32752),
        },
    ),
    (
        vu.testing.blk,
        behind_blk,
        {
            "device": (),
            "num_queues": NUMBER,
            "queue_size": NUMBER,
            "timeout": SECONDS,
            "guest": (5, "no", []),
            **RINGS,
            "iommu": FLAG,
        },
    ),
    (
        vu.Frontend,
        frontend,
        {"socket": PATH, "fd": ("no", 2.5, [], BIG), "timeout": SECONDS, "xen": FLAG, **RINGS},
    ),
    (
        vu.VirtioBlkDriver,
        driver,
        {
            "socket": PATH,
            "fd": ("no", 2.5, [], BIG),
            "memory": NUMBER,
            "num_queues": NUMBER,
            "queue_size": NUMBER,
            "timeout": SECONDS,
            "guest": (5, "no", []),
            **RINGS,
            "inflight": FLAG,
            "dirty_log": FLAG,
            "iommu": FLAG,
        },
    ),
    (
        vu.Frontend.feature_names,
        lambda w, **g: vu.Frontend.feature_names(**{"bits": 0, **g}),
        {"bits": NUMBER, "device_id": OPTIONAL_NUMBER},
    ),
    (
        vu.Frontend.protocol_feature_names,
        lambda w, **g: vu.Frontend.protocol_feature_names(**g),
        {"bits": NUMBER},
    ),
    (
        vu.Frontend.config,
        lambda w, **g: w.driver.config(**{"offset": 0, "length": 8, **g}),
        {"offset": NUMBER, "length": NUMBER},
    ),
    (vu.Frontend.save_state, lambda w, **g: w.driver.save_state(**g), {"most": NUMBER}),
    (
        vu.Frontend.set_xen_memory,
        lambda w, **g: w.driver.set_xen_memory(**{"regions": [], **g}),
        {"regions": (), "design": WORD},
    ),
    (
        vu.VirtioBlkDriver.pread,
        lambda w, **g: w.driver.pread(**{"n": 512, "offset": 0, **g}),
        {"n": NUMBER, "offset": NUMBER},
    ),
    (
        vu.VirtioBlkDriver.pwrite,
        lambda w, **g: w.driver.pwrite(**{"data": bytes(512), "offset": 0, **g}),
        {"data": (), "offset": NUMBER},
    ),
    (
        vu.VirtioBlkDriver.discard,
        lambda w, **g: w.driver.discard(**{"offset": 0, "length": 512, **g}),
        {"offset": NUMBER, "length": NUMBER},
    ),
    (
        vu.VirtioBlkDriver.write_zeroes,
        lambda w, **g: w.driver.write_zeroes(**{"offset": 0, "length": 512, **g}),
        {"offset": NUMBER, "length": NUMBER, "unmap": FLAG},
    ),
    (vu.VirtioBlkDriver.set_writeback, lambda w, **g: w.driver.set_writeback(**g), {"on": FLAG}),
    (
        vu.VirtioBlkDriver.wait_config_change,
        lambda w, **g: w.driver.wait_config_change(**g),
        {"timeout": SECONDS},
    ),
    (
        vu.VirtioBlkDriver.guest_memory,
        lambda w, **g: w.driver.guest_memory(**{"address": 0, "length": 8, **g}),
        {"address": NUMBER, "length": NUMBER},
    ),
    (vu.VirtioBlkDriver.prepare_load, lambda w, **g: w.driver.prepare_load(**g), {"seed": NUMBER}),
    (
        vu.VirtioBlkDriver.run_load,
        load,
        {
            "access": WORD,
            "block_bytes": NUMBER,
            "depth": NUMBER,
            "seconds": ("no", [], NAN, 86401.0),
            "ops": OPTIONAL_NUMBER,
            "warm_up": SECONDS,
            "polling": FLAG,
            "cpus": ("no", 5, 2.5, b"x", [-1]),
            "verify": ("no", 5, []),
            "seed": NUMBER,
        },
    ),
]
"""What is called, how, and of each parameter what it does not take; nothing for one that is no
plain value."""


@pytest.mark.parametrize(("function", "parameters"), [(f, p) for f, _, p in TAKEN])
def test_no_parameter_is_left_out(
    function: Callable[..., Any], parameters: dict[str, tuple[object, ...]]
) -> None:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    taken = inspect.signature(function).parameters.values()
    names = {p.name for p in taken if p.kind not in kinds} - {"self", "cls", "_guest"}
    assert names == set(parameters)


CASES = [
    pytest.param(call, name, value, id=f"{function.__qualname__}-{name}-{value!r:.20}")
    for function, call, parameters in TAKEN
    for name, values in parameters.items()
    for value in values
]


@pytest.mark.parametrize(("call", "name", "value"), CASES)
def test_an_argument_that_is_not_taken_is_named_and_shown(
    world: World, call: Call, name: str, value: object
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(world, **{name: value})
    told = str(caught.value)
    assert told.startswith(f"{name} "), told
    assert any(word in told for word in (" is ", " are ", " has ")), told
    shown = [repr(value)[:20], repr(value).strip("[](),")]
    if isinstance(value, int):
        shown.append(f"{value:#x}")
    if isinstance(value, bytes | str):
        shown.append(f"not {len(value)}")
    assert any(word in told for word in shown), told


def test_a_socket_that_is_a_number_is_told_to_be_a_path() -> None:
    with pytest.raises(TypeError, match=r"^socket is a path, as 'disk.sock', not 5$"):
        vu.Backend(RamDisk(), socket=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^socket is a path, not 5\n"):
        vu.Frontend(5)  # type: ignore[arg-type]


def test_text_is_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"^read_only is True or False, not 'no'$"):
        vu.NullDisk(size=512, read_only="no")  # type: ignore[arg-type]


def test_a_time_that_has_passed_is_none_at_all(world: World) -> None:
    """What is left until a deadline may be below zero."""
    assert world.backend.wait_running(-1) is True
    assert world.driver.wait_config_change(-1) is False
