# SPDX-License-Identifier: Apache-2.0
"""Contexts: the threads and the working memory of calls."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import byref, c_void_p

from ._abi import ContextOptions, Status, lib, sized
from ._errors import check, error


class Context:
    """Threads and working memory that calls reuse; may be shared by any number of Python threads.

    ``threads``: those that work on one call, the caller's included: 1 to 1024; 0 for ``MOE_NUM_THREADS`` of the
    environment or, without that, as many as the process may use.  ``isa``: the highest instruction set to use
    (``moe_tkg.isa_levels()``), or None for ``MOE_ISA`` of the environment or, without that, the machine's best.

    After a fork calls on the child's copy run on their caller's thread alone.

    Raises MoeValueError for a number of threads or a level that cannot be had.
    """

    __slots__ = ("address", "__weakref__")

    def __init__(self, threads: int = 0, isa: str | None = None):
        self.address = None
        if threads != ctypes.c_int32(threads).value:  # ctypes would cut it off
            raise error(Status.VALUE, f"threads = {threads}: must be in [0, 1024]")
        options = sized(ContextOptions, threads=threads, isa=None if isa is None else isa.encode())
        handle = c_void_p()
        check(lib.moe_context_create(byref(options), byref(handle)))
        self.address = handle.value

    @property
    def threads(self) -> int:
        """How many threads work on a call."""
        return lib.moe_context_threads(self.address)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return lib.moe_context_isa(self.address).decode()

    def __repr__(self) -> str:
        return f"moe_tkg.Context(threads={self.threads}, isa={self.isa!r})"

    def __del__(self, destroy=lib.moe_context_destroy):
        if getattr(self, "address", None) is not None:
            destroy(self.address)


_lock = threading.Lock()
_default: Context | None = None
_threads = 0


def default_context() -> Context:
    """The context of calls that are given none: made when it is first wanted, and anew in a forked child."""
    global _default
    context = _default
    if context is None:
        with _lock:
            context = _default
            if context is None:
                context = _default = Context(_threads)
    return context


def set_num_threads(threads: int) -> None:
    """From now on calls without a context run on this many threads (0: as many as ``Context()`` would use).

    Calls that are running keep theirs.
    """
    global _default, _threads
    context = Context(threads)
    with _lock:
        _default, _threads = context, threads


def get_num_threads() -> int:
    """How many threads work on a call without a context."""
    return default_context().threads


def isa_levels() -> list[str]:
    """The instruction sets that this machine and this build have, weakest first."""
    levels: list[str] = []
    while (name := lib.moe_isa_level(len(levels))) is not None:
        levels.append(name.decode())
    return levels


def _after_fork_in_child() -> None:
    # The parent's threads are not here, and a lock of the parent's may have been held.
    global _default, _lock
    _lock = threading.Lock()
    _default = None


os.register_at_fork(after_in_child=_after_fork_in_child)
