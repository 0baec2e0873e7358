"""What can go wrong, by whose fault.

A failure of the host (no such file, no right to the socket) is an ordinary ``OSError``, a wrong
argument a ``ValueError`` or ``TypeError``.
"""


class VhostUserError(Exception):
    """The base of the package's own exceptions; itself raised for what cannot be done now."""


class NegotiationError(VhostUserError):
    """The two ends agree on too little. Says which feature, and what to change."""


class ProtocolError(VhostUserError):
    """The peer broke the vhost-user protocol."""


class GuestError(VhostUserError):
    """The driver broke a ring (a bad chain, an address outside its memory) or asked for what cannot
    be: a change of a read-only disk, a range past its end.
    """


class RequestError(VhostUserError, OSError):
    """On the front-end's side: the device has failed a request. ``errno`` says how."""


class MappingError(VhostUserError, OSError):
    """On the front-end's side: the back-end has refused guest memory, which it cannot map or which
    was described wrongly. Its log says why.
    """


class StaleRequestError(VhostUserError):
    """A request was used after it was answered, or after its queue had stopped."""
