"""Programs that every new zygote must run before it is trusted: an honest one, and one that tries to break out.

The level of a sandbox rests on what these saw, not on what the kernel promised.
"""

from __future__ import annotations

from typing import Any

from lightning_dterm.types import CallTest

HONEST = "import math\n\ndef canary(xs, name):\n    return sorted({x * 2 for x in xs}), {name: math.comb(len(xs), 2)}\n"
HONEST_TESTS = (
    CallTest(([3, 1, 2, 2], "n"), ([2, 4, 6], {"n": 6})),
    CallTest(([], ""), ([], {"": 0})),
    CallTest(([1], "x"), "wrong on purpose"),
)
HONEST_OUTCOMES = (True, True, False)

ATTACKS = """
import ctypes, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == 'aarch64'

def call(x86, aarch64, *arguments):
    return libc.syscall(aarch64 if arm else x86, *arguments) >= 0

def reads(path):
    with open(path, 'rb') as file:
        return len(file.read(1)) >= 0

def writes(path):
    with open(path, 'xb'):
        os.unlink(path)  # it was possible: leave nothing
        return True

def makes(path):
    os.mkdir(path)
    os.rmdir(path)
    return True

def other():
    return os.getppid() or 1

def spawns():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return True

def limits():
    value = (ctypes.c_uint64 * 2)()
    return call(302, 261, other(), 7, None, value)

ATTEMPTS = {
    'seccomp': [
        lambda: socket.socket(), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        lambda: socket.socket(socket.AF_NETLINK), lambda: socket.socketpair(), spawns,
        lambda: os.execv('/bin/true', ['true']), lambda: call(101, 117, 16, other(), None, None),
        lambda: os.chmod(os.__file__, os.stat(os.__file__).st_mode & 0o7777) is None,  # Landlock would not notice
        lambda: os.kill(other(), 0) is None, lambda: os.kill(-1, 0) is None, limits,
        lambda: call(425, 425, 4, None), lambda: call(272, 97, 0x10000000),
        lambda: call(165, 40, b'none', b'/', None, 0x44000, None), lambda: call(310, 270, other(), None, 0, None, 0, 0),
        lambda: __import__('fcntl').fcntl(0, 8, other()) == 0, lambda: __import__('fcntl').ioctl(0, 0x5412, b'x'),
        lambda: call(434, 434, other(), 0), lambda: call(321, 280, 0, None, 0), lambda: call(250, 219, 0, -3, 0),
        lambda: call(0x40000000 + 39, 0x40000000 + 172) and not arm, lambda: call(435, 435, None, 0),
    ],
    'files': [
        lambda: reads('/etc/passwd'), lambda: reads('/proc/self/environ'), lambda: reads(f'/proc/{other()}/cmdline'),
        lambda: reads(SELF), lambda: writes('/tmp/lightning-dterm-canary'), lambda: writes('../../canary'),
        lambda: writes(os.path.dirname(os.__file__) + '/canary.py'), lambda: os.listdir('/home') is not None,
        lambda: makes('/tmp/lightning-dterm-canary-folder'),
    ],
    'uid': [lambda: os.getuid() in (0, 65534), lambda: os.geteuid() in (0, 65534), lambda: os.setuid(0) is None],
    'spaces': [lambda: other() != 1, lambda: os.path.exists('/proc/self'), lambda: os.path.exists('/home')],
}

def canary(kind):
    done = []
    for index, attempt in enumerate(ATTEMPTS[kind]):
        try:
            if attempt():
                done.append(index)
        except BaseException:
            pass
    return done
"""
# Without seccomp its attempts may end the process, so they come last.
_KINDS = ("files", "spaces", "uid", "seccomp")
ATTACK_TESTS = tuple(CallTest((kind,), []) for kind in _KINDS)


def attack_program(source: str) -> str:
    """The attacks; ``source`` is a file of ours that no program may read."""
    return f"SELF = {source!r}\n{ATTACKS}"


def surviving(fences: frozenset[str], outcomes: tuple[Any, ...]) -> tuple[frozenset[str], list[str]]:
    """The fences that held against the attacks, and what is said of those that did not.

    Args:
        fences: The fences that the zygote claims.
        outcomes: Outcomes of :data:`ATTACK_TESTS`.
    """
    broken = {kind for kind, outcome in zip(_KINDS, outcomes, strict=True) if not outcome.passed}
    lost: set[str] = set()
    if "seccomp" in broken:
        lost |= {"seccomp"}
    if "files" in broken:
        lost |= {"landlock", "mount"}
    if "spaces" in broken:
        lost |= {"mount", "pid", "net", "ipc", "user"}
    if "uid" in broken:
        lost |= {"uid"}
    lost &= fences
    return fences - lost, [f"{name} did not hold against an attack canary" for name in sorted(lost)]
