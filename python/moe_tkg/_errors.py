# SPDX-License-Identifier: Apache-2.0
"""Errors of the library as exceptions."""

from __future__ import annotations

from ._abi import Status, lib


class MoeError(Exception):
    """The base of all errors of this package.

    ``status`` is the library's (``moe_tkg.Status``), the text its message: argument, value and limit.
    """

    status: Status

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = Status(status)

    def __reduce__(self):
        return type(self), (self.status, str(self))


class MoeValueError(MoeError, ValueError):
    """A value, shape, layout or combination that is not taken; a file or an image that is not sound."""


class MoeTypeError(MoeError, TypeError):
    """A missing argument, an object of a wrong kind, or an element type that a parameter does not take."""


class MoeMemoryError(MoeError, MemoryError):
    """Memory ran out; nothing is lost, the call can be repeated."""


class MoeOSError(MoeError, OSError):
    """A file that cannot be opened, read or written."""


class MoeRuntimeError(MoeError, RuntimeError):
    """Something that is in use, or a library of another version."""


_KINDS = {
    Status.NULL_ARG: MoeTypeError,
    Status.DTYPE: MoeTypeError,
    Status.NOMEM: MoeMemoryError,
    Status.OPEN: MoeOSError,
    Status.READ: MoeOSError,
    Status.WRITE: MoeOSError,
    Status.ABI: MoeRuntimeError,
    Status.BUSY: MoeRuntimeError,
}


def error(status: int, message: str) -> MoeError:
    status = Status(status)
    return _KINDS.get(status, MoeValueError)(status, message)


def check(status: int, last_error=None, first_row: int = 0) -> None:
    """Raises what a call ended with, unless it is MOE_OK.  On the thread that made the call, on rows from first_row on."""
    if status:
        message = (last_error or lib.moe_last_error)().decode(errors="replace")
        raise error(status, f"{message} (rows counted from {first_row})" if first_row else message)
