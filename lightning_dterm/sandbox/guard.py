"""The fences around one Python program's process, prepared in the zygote and raised in each child.

Everything that can be prepared is prepared once; a forked child only pays a few system calls. The parts are in
:mod:`~lightning_dterm.sandbox.kernel` (limits, capabilities, Landlock), :mod:`~lightning_dterm.sandbox.seccomp` and
:mod:`~lightning_dterm.sandbox.namespaces`, and can be used without this class. Standard library only.
"""

from __future__ import annotations

import os
import struct

from lightning_dterm.sandbox import namespaces
from lightning_dterm.sandbox.kernel import READ_DIR, READ_FILE, WRITE_FILE, Kernel, set_limits
from lightning_dterm.sandbox.seccomp import build_filter, pid_slots

MAX_THREADS = 64


class Guard:
    """Raises every fence that this kernel grants.

    Args:
        kernel: The system calls.
        scratch: The folder below which programs may write.
        plan: The namespaces that the zygote lives in, see :mod:`~lightning_dterm.sandbox.namespaces`; None for none.
        without: Fences to do without: for tests of the lower levels, and of what the higher ones add.

    Attributes:
        fences: ``seccomp``, ``landlock`` and namespaces in force.
        reasons: Why others are not.
    """

    def __init__(self, kernel: Kernel, scratch: str, plan: str | None, without: frozenset[str] = frozenset()) -> None:
        self.kernel, self._plan = kernel, plan
        self.reasons: list[str] = []
        self._filter = bytearray(build_filter(kernel.machine)) if kernel.machine else bytearray()
        self._pid_slots = pid_slots(self._filter)
        self._ruleset = -1
        granted = [name for name in ("seccomp", "landlock") if name not in without and self._works(name, scratch)]
        if plan is not None:
            granted += ["mount", "pid", "net", "ipc", *(["user"] if plan == "user" else [])]
        self.fences: tuple[str, ...] = tuple(granted)

    def _works(self, name: str, scratch: str) -> bool:
        """Try a fence for real in a throw-away child, because containers refuse some of them."""
        try:
            if name == "landlock":
                if not self.kernel.landlock_abi:
                    raise OSError("landlock: not in this kernel")
                self._ruleset = self.kernel.make_ruleset(library_rules(self.kernel, scratch))
            elif not self._filter:
                raise OSError(f"seccomp: no table of system calls for {os.uname().machine}")
        except OSError as error:
            self.reasons.append(str(error))
            return False
        pid = os.fork()
        if pid == 0:
            try:
                self.kernel.no_new_privileges()
                if name == "seccomp":
                    self._install_filter()
                else:
                    self.kernel.restrict_files(self._ruleset)
            except BaseException:
                os._exit(1)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            return True
        self.reasons.append(f"{name}: refused, by a container's profile perhaps")
        return False

    def enter(self, parent: int, cpu_s: float, memory: int, output: int) -> None:
        """Raise every fence around the calling process (a fresh child of the zygote, single-threaded).

        Args:
            parent: Pid of the zygote.
            cpu_s: CPU seconds.
            memory: Bytes of address space.
            output: Bytes of one file.

        Raises:
            OSError: a fence that :attr:`fences` promises could not be raised.
        """
        self.kernel.die_with_parent()
        if os.getppid() != parent:
            os._exit(0)
        # Counted per user: meaningful in a user namespace of its own, or where nothing better stops forks.
        processes = MAX_THREADS if self._plan == "user" else None if "seccomp" in self.fences else 0
        set_limits(cpu_s, memory, output, processes=processes)
        if self._plan == "root":
            namespaces.become_nobody()
            self.kernel.die_with_parent()  # a change of uid clears it
        self.kernel.drop_capabilities()
        self.kernel.no_new_privileges()
        if "landlock" in self.fences:
            self.kernel.restrict_files(self._ruleset)
        if "seccomp" in self.fences:
            self._install_filter()

    def _install_filter(self) -> None:
        for offset in self._pid_slots:
            struct.pack_into("=I", self._filter, offset, os.getpid())
        self.kernel.install_filter(self._filter)


def library_rules(kernel: Kernel, scratch: str) -> list[tuple[str, int]]:
    """Landlock rules: read the standard library and shared objects, write only below ``scratch``, execute nothing."""
    rules = [(scratch, kernel.file_rights & ~1)]
    rules += [(path, READ_FILE | READ_DIR) for path in namespaces.SHARED_OBJECTS]
    rules += [(path, READ_FILE) for path in ("/dev/urandom", "/dev/random", "/dev/zero", "/etc/localtime")]
    rules += [("/usr/share/zoneinfo", READ_FILE | READ_DIR), ("/dev/null", READ_FILE | WRITE_FILE)]
    for path in namespaces.standard_library():
        rules += _folder_rules(path)
    return rules


def _folder_rules(path: str) -> list[tuple[str, int]]:
    """Read rights for one standard-library folder, its third-party subfolders left out."""
    if not os.path.isdir(path):
        return [(path, READ_FILE)]
    rules = [(path, READ_DIR)]
    for entry in os.scandir(path):
        if not entry.name.endswith("-packages"):
            rules.append((entry.path, READ_FILE | (READ_DIR if entry.is_dir() else 0)))
    return rules
