"""The table in docs/architecture.md for users of rust-vmm's trait says what there is."""

import inspect
import re

import vhost_user as vu

from .test_map import PAGE, PROJECT

THEIRS = [
    "num_queues",
    "max_queue_size",
    "features",
    "acked_features",
    "protocol_features",
    "reset_device",
    "set_event_idx",
    "get_config",
    "set_config",
    "update_memory",
    "set_backend_req_fd",
    "get_shared_object",
    "set_gpu_socket",
    "queues_per_thread",
    "exit_event",
    "stop_vring",
    "handle_event",
    "set_device_state_fd",
    "check_device_state",
    "get_shmem_config",
]
"""The methods of ``VhostUserBackend`` in vhost-user-backend 0.24."""

CORE = [PROJECT / "rust/core/src" / name for name in ("device.rs", "backend")]


def columns(page: str) -> list[tuple[list[str], list[str], list[str]]]:
    """The names in each row: theirs, the core's, Python's; none where there is none."""
    _, _, section = page.partition("## Coming from `vhost-user-backend`\n")
    rows = re.findall(r"^\| (`.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    return [(names(theirs), names(core), names(python)) for theirs, core, python in rows]


def names(cell: str) -> list[str]:
    """The names that a cell has before it explains itself."""
    return re.findall(r"`(\w+)=?`", re.split(r"[:;]", cell)[0])


def core_has(name: str) -> bool:
    files = [path for place in CORE for path in [place, *place.rglob("*.rs")] if path.is_file()]
    declared = re.compile(rf"\b(?:fn {name}\b|pub {name}:|trait {name}\b|struct {name}\b)")
    return any(declared.search(path.read_text()) for path in files)


def python_has(name: str) -> bool:
    arguments = {
        argument
        for called in (vu.Device, vu.Backend)
        for argument in inspect.signature(called).parameters
    }
    owners = (vu, vu.Device, vu.Backend, vu.Request, vu.Queue)
    return name in arguments or any(hasattr(owner, name) for owner in owners)


def test_each_method_of_theirs_is_in_the_table() -> None:
    theirs = [name for row in columns(PAGE.read_text()) for name in row[0]]
    assert set(theirs) == set(THEIRS)
    assert [name for name in theirs if theirs.count(name) > 1] == ["handle_event"] * 2


def test_the_core_has_what_the_table_names() -> None:
    ours = [name for row in columns(PAGE.read_text()) for name in row[1]]
    assert len(ours) > 10
    assert [name for name in ours if not core_has(name)] == []
    assert not core_has("acked_features")


def test_python_has_what_the_table_names() -> None:
    ours = [name for row in columns(PAGE.read_text()) for name in row[2]]
    assert len(ours) > 10
    assert [name for name in ours if not python_has(name)] == []
    assert not python_has("acked_features")
