"""How far programs are isolated: ordered levels, the fences that make them, and what to do where one is missing."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

FENCES: dict[str, str] = {
    "seccomp": "Linux >= 4.14 on x86_64 or aarch64, and a container profile that lets processes add seccomp filters "
    "(Docker's default does)",
    "landlock": "Linux >= 5.13 with 'landlock' in /sys/kernel/security/lsm (boot option lsm=landlock,...)",
    "mount": "unprivileged user namespaces (sysctl user.max_user_namespaces > 0, kernel.unprivileged_userns_clone=1, "
    "kernel.apparmor_restrict_unprivileged_userns=0), or root with CAP_SYS_ADMIN; in Docker: --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined",
}
FENCES.update(dict.fromkeys(("user", "pid", "net", "ipc"), FENCES["mount"]))
FENCES["uid"] = (
    "root with CAP_SETUID and CAP_SETGID, an interpreter that other users can read (or a mount namespace), and a user "
    "namespace that maps uids above 1,900,000,000"
)
"""Fences that a kernel or container may refuse, each with how to get it."""

_SPACES = frozenset({"mount", "pid", "net", "ipc"})


class Level(IntEnum):
    """Isolation of programs, each level with all that the lower ones have. ``docs/sandbox.md`` says what each means."""

    NONE = 0
    """A process of its own and a wall clock (macOS, Windows): programs can do whatever this user can."""
    PROCESS = 1
    """And rlimits, no new privileges, no capabilities, a private result channel, tree clean-up."""
    SYSCALLS = 2
    """And the seccomp allow-list: no sockets, processes, programs, signals to or limits of others."""
    KERNEL = 3
    """And no files but the standard library and a scratch folder (Landlock or a mount namespace). The default."""
    NAMESPACES = 4
    """And process, network, IPC, host name and mount namespaces, and a bounded tmpfs for each program."""

    @property
    def label(self) -> str:
        """Lower-case name, as stamped on results."""
        return self.name.lower()

    @classmethod
    def parse(cls, value: Level | str) -> Level:
        """A level from its label.

        Raises:
            ValueError: no such level.
        """
        if isinstance(value, Level):
            return value
        try:
            return cls[value.upper()]
        except KeyError:
            labels = ", ".join(level.label for level in cls)
            raise ValueError(f"min_level must be one of {labels}, got {value!r}.") from None


DEFAULT_LEVEL = Level.KERNEL


def level_of(fences: Iterable[str]) -> Level:
    """The level that a set of working fences amounts to."""
    held = frozenset(fences)
    if "seccomp" not in held:
        return Level.PROCESS
    if not held & {"landlock", "mount"}:
        return Level.SYSCALLS
    return Level.NAMESPACES if held >= _SPACES else Level.KERNEL


def missing_for(level: Level, fences: Iterable[str]) -> list[str]:
    """The fences that ``level`` needs beyond those that work."""
    held = frozenset(fences)
    missing = []
    if level >= Level.SYSCALLS and "seccomp" not in held:
        missing.append("seccomp")
    if level >= Level.KERNEL and not held & {"landlock", "mount"}:
        missing.append("landlock")
    if level >= Level.NAMESPACES:
        missing += sorted(_SPACES - held)
    return missing


def refusal(level: Level, fences: Iterable[str], reasons: str = "") -> str:
    """What is missing for ``level``, how to get it, and the opt-in to less."""
    held = list(fences)
    missing = missing_for(level, held)
    remedies = "; ".join(f"{name}: {FENCES[name]}" for name in missing if name == missing[0] or name in ("seccomp",))
    got = level_of(held).label
    said = f" The kernel said: {reasons}." if reasons else ""
    return (
        f"Programs can be isolated here at level {got!r} only, not {level.label!r}: {', '.join(missing)} missing, so "
        f"model-written programs could harm this machine or cheat.{said} To get it: {remedies}. To accept the weaker "
        f"isolation, say so: min_level={got!r}. `python -m lightning_dterm.sandbox doctor` shows what works here."
    )
