"""virtio devices in Python on a Rust core: vhost-user back-ends.

``import vhost_user as vu``; write a device class, then ``vu.serve(Device(...), socket=path)``.

Importing this loads nothing and starts nothing: names are looked up at their first use.
"""

TYPE_CHECKING = False  # What type checkers take for true; importing `typing` takes 5 ms.
if TYPE_CHECKING:
    from . import devices as devices
    from . import testing as testing
    from ._core import BlockBatch as BlockBatch
    from ._core import BlockRequest as BlockRequest
    from ._core import Frontend as Frontend
    from ._core import LoadReport as LoadReport
    from ._core import Metrics as Metrics
    from ._core import Queue as Queue
    from ._core import Request as Request
    from ._core import VirtioBlkDriver as VirtioBlkDriver
    from .devices.base import Device as Device
    from .devices.block import BlkOp as BlkOp
    from .devices.block import BlockDevice as BlockDevice
    from .devices.block import FileDisk as FileDisk
    from .devices.block import NullDisk as NullDisk
    from .devices.rng import Rng as Rng
    from .devices.state import StateReader as StateReader
    from .errors import GuestError as GuestError
    from .errors import MappingError as MappingError
    from .errors import NegotiationError as NegotiationError
    from .errors import ProtocolError as ProtocolError
    from .errors import RequestError as RequestError
    from .errors import StaleRequestError as StaleRequestError
    from .errors import VhostUserError as VhostUserError
    from .server import Backend as Backend
    from .server import serve as serve
    from .server import set_total_copy_budget as set_total_copy_budget
    from .stats import QueueStats as QueueStats
    from .xen import XenOptions as XenOptions
    from .xen_region import XenFlags as XenFlags
    from .xen_region import XenRegion as XenRegion

__all__ = [
    "Backend",
    "BlkOp",
    "BlockBatch",
    "BlockDevice",
    "BlockRequest",
    "Device",
    "FileDisk",
    "Frontend",
    "GuestError",
    "LoadReport",
    "MappingError",
    "Metrics",
    "NegotiationError",
    "NullDisk",
    "ProtocolError",
    "Queue",
    "QueueStats",
    "Request",
    "RequestError",
    "Rng",
    "StaleRequestError",
    "StateReader",
    "VhostUserError",
    "VirtioBlkDriver",
    "XenFlags",
    "XenOptions",
    "XenRegion",
    "__version__",
    "devices",
    "serve",
    "set_total_copy_budget",
    "testing",
]

__version__ = "0.1.0"


def _check_interpreter() -> None:
    """Refuses a subinterpreter: the core's threads call devices in the main interpreter.

    The extension module does that as well, when it is loaded, which may be much later.
    """
    import sys

    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    try:
        interpreters = __import__(name)
        is_main = interpreters.get_current() == interpreters.get_main()
    except (ImportError, AttributeError):
        return
    if not is_main:
        raise ImportError(
            "vhost_user works in the main interpreter of a process only, where its threads call "
            "devices, and not in a subinterpreter. Serve devices from a process of their own"
        )


_check_interpreter()

_HOMES = {
    "Backend": "server",
    "BlkOp": "devices.block",
    "BlockBatch": "_core",
    "BlockDevice": "devices.block",
    "BlockRequest": "_core",
    "Device": "devices.base",
    "FileDisk": "devices.block",
    "Frontend": "_core",
    "GuestError": "errors",
    "LoadReport": "_core",
    "Metrics": "_core",
    "MappingError": "errors",
    "NegotiationError": "errors",
    "NullDisk": "devices.block",
    "ProtocolError": "errors",
    "Queue": "_core",
    "QueueStats": "stats",
    "Request": "_core",
    "RequestError": "errors",
    "Rng": "devices.rng",
    "StaleRequestError": "errors",
    "StateReader": "devices.state",
    "VhostUserError": "errors",
    "VirtioBlkDriver": "_core",
    "XenFlags": "xen_region",
    "XenOptions": "xen",
    "XenRegion": "xen_region",
    "serve": "server",
    "set_total_copy_budget": "server",
}


if not TYPE_CHECKING:  # For type checkers each name would exist.

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in ("devices", "testing"):
            return import_module(f"{__name__}.{name}")
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
