"""The fences around one untrusted process, prepared once and raised in each child. Standard library only.

Two profiles share everything here: the *interpreter* (:class:`Guard`, one Python program in a forked child) and the
*exec* profile (``languages/launcher.py``, compilers and compiled programs). The parts are in
:mod:`~lightning_dterm.sandbox.kernel` (limits, capabilities, Landlock), :mod:`~lightning_dterm.sandbox.seccomp` and
:mod:`~lightning_dterm.sandbox.namespaces`.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Sequence

from lightning_dterm.sandbox import namespaces
from lightning_dterm.sandbox.kernel import (
    READ_DIR,
    READ_FILE,
    WRITE_FILE,
    Kernel,
    become,
    counts_processes_alone,
    set_limits,
)
from lightning_dterm.sandbox.seccomp import build_filter, pid_slots

MAX_THREADS = 64


class Fence:
    """A seccomp filter and a Landlock ruleset, each tried for real in a throw-away child before it is relied on.

    Args:
        kernel: The system calls.
        code: The filter, see :func:`~lightning_dterm.sandbox.seccomp.build_filter`; empty for none.
        rules: Landlock rules, see :meth:`~lightning_dterm.sandbox.kernel.Kernel.make_ruleset`.
        without: Fences not to raise.
        attack: Called in the throw-away child behind one fence with its name; False says that the fence did not hold.

    Attributes:
        names: ``seccomp`` and ``landlock``, if they work.
        reasons: Why others do not.
    """

    def __init__(
        self,
        kernel: Kernel,
        code: bytes,
        rules: Sequence[tuple[str, int]],
        without: frozenset[str] = frozenset(),
        attack: Callable[[str], bool] | None = None,
    ) -> None:
        self.kernel, self.reasons = kernel, list[str]()
        self._filter, self._ruleset, self._rules = bytearray(code), -1, tuple(rules)
        self._pid_slots = pid_slots(self._filter)
        self._attack = attack
        kernel.forbid_capabilities()
        self.names = tuple(n for n in ("seccomp", "landlock") if n not in without and self._works(n, rules))

    def _works(self, name: str, rules: Sequence[tuple[str, int]]) -> bool:
        """Try a fence, because containers refuse some of them."""
        try:
            if name == "landlock":
                if not self.kernel.landlock_abi:
                    raise OSError("landlock: not in this kernel")
                self._ruleset = self.kernel.make_ruleset(rules)
            elif not self._filter:
                raise OSError(f"seccomp: no table of system calls for {os.uname().machine}")
        except OSError as error:
            self.reasons.append(str(error))
            return False
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                self.kernel.no_new_privileges()
                self._raise(name)
                os._exit(0 if self._attack is None or self._attack(name) else 2)
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            why = "did not hold" if code == 2 else "refused, by a container's profile perhaps"
            self.reasons.append(f"{name}: {why}")
        return code == 0

    def _raise(self, name: str) -> None:
        if name == "landlock":
            self.kernel.restrict_files(self._ruleset)
            return
        for offset in self._pid_slots:
            struct.pack_into("=I", self._filter, offset, os.getpid())
        self.kernel.install_filter(self._filter)

    def close_in(
        self, only: frozenset[str] = frozenset({"seccomp", "landlock"}), further: Sequence[tuple[str, int]] = ()
    ) -> None:
        """Give up capabilities and new privileges, then raise those of :attr:`names` that are in ``only``, for good.

        Args:
            only: Fences to raise.
            further: Landlock rules for this process alone.

        Raises:
            OSError: one of them could not be raised.
        """
        self.kernel.drop_capabilities()
        self.kernel.no_new_privileges()
        if further and "landlock" in self.names:
            self._ruleset = self.kernel.make_ruleset([*self._rules, *further])
        for name in ("landlock", "seccomp"):  # the filter would refuse the calls of the other
            if name in self.names and name in only:
                self._raise(name)


class Guard:
    """Raises every fence that this kernel grants around a Python program's process, a fresh child of the zygote.

    Args:
        kernel: The system calls.
        scratch: The folder below which programs may write; without namespaces, the one that they start in.
        plan: The namespaces that the zygote lives in, see :mod:`~lightning_dterm.sandbox.namespaces`; None for none.
        without: Fences to do without: for tests of the lower levels, and of what the higher ones add.

    Attributes:
        fences: ``seccomp``, ``landlock``, ``uid`` and namespaces in force.
        reasons: Why others are not.
    """

    def __init__(self, kernel: Kernel, scratch: str, plan: str | None, without: frozenset[str] = frozenset()) -> None:
        self.kernel, self._plan = kernel, plan
        kernel.offer_to_the_oom_killer()
        code = build_filter(kernel.machine) if kernel.machine else b""
        self._fence = Fence(kernel, code, library_rules(kernel, scratch), without)
        self.reasons = self._fence.reasons
        # In a user namespace root was given up on the way in; without namespaces it is given up where the interpreter
        # can still be read without it.
        self._leaves_root = plan == "root" or (
            plan is None
            and "uid" not in without
            and can_leave_root(kernel, namespaces.standard_library(), os.path.dirname(scratch))
        )
        apart = kernel.has_spare_user and (self._leaves_root or (plan == "user" and os.geteuid() == kernel.spare_user))
        granted = [*self._fence.names, *namespaces.fences_of(plan), *(["uid"] if apart else [])]
        self.fences: tuple[str, ...] = tuple(granted)
        # Counted per user: meaningful for a uid or a user namespace of its own, or where nothing better stops forks.
        counted = apart or (plan == "user" and counts_processes_alone())
        self._processes = MAX_THREADS if counted else None if "seccomp" in self._fence.names else 0

    def enter(self, parent: int, cpu_s: float, memory: int, output: int) -> None:
        """Raise every fence around the calling process, which must be single-threaded and in its scratch folder.

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
        set_limits(cpu_s, memory, output, processes=self._processes)
        if self._leaves_root:
            if self._plan is None:
                os.chown(".", self.kernel.spare_user, self.kernel.spare_user)
            become(self.kernel.spare_user)
            self.kernel.die_with_parent()  # a change of uid clears it
        self._fence.close_in()


def can_leave_root(kernel: Kernel, needed: Sequence[str], folder: str) -> bool:
    """Whether a process that gives up root can still read what it needs, tried in a throw-away child.

    Args:
        kernel: The system calls.
        needed: Files and folders that must be readable.
        folder: A folder of ours on the way to its own, made passable if the answer is yes.
    """
    if os.geteuid() != 0:
        return False
    mode = os.stat(folder).st_mode & 0o777
    os.chmod(folder, 0o711)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            become(kernel.spare_user)
            os.stat(os.path.join(folder, "."))
            for path in needed:
                os.close(os.open(path, os.O_RDONLY))
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1] == 0:
        return True
    os.chmod(folder, mode)
    return False


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
