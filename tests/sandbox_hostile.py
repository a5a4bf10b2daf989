"""Hostile programs, each with the statuses it may end with. Whatever it achieves, it returns SECRET only by cheating.

Every program is called as ``f(x)`` with x from 2 to 5 and expected to return SECRET, which no honest computation gives.
A program that gets what it must not have returns SECRET, so success in an attack shows as a passed test.
"""

# ruff: noqa: E501, RUF001 - programs in a table read better on one line

from __future__ import annotations

import platform

from lightning_dterm.sandbox.syscalls import NUMBERS

SECRET = 8_675_309
ESCAPE = "/tmp/lightning-dterm-escape"  # no program may make this
_NUMBERS = NUMBERS.get(platform.machine(), NUMBERS["x86_64"])
_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_CHANNEL = "import gc, os\nchannel = next(o for o in gc.get_objects() if type(o).__name__ == 'Channel')\n"


def _call(name: str, arguments: str = "", setup: str = "") -> str:
    """A program that wins if a system call succeeds."""
    inner = f"{_NUMBERS.get(name, -1)}, {arguments}".rstrip(", ")
    return f"{_LIBC}{setup}def f(x):\n    return 8675309 if libc.syscall({inner}) >= 0 else -1\n"


def _wins(line: str, imports: str = "os") -> str:
    """A program that wins if a line does not raise."""
    return f"import {imports}\ndef f(x):\n    {line}\n    return 8675309\n"


FORGERIES: dict[str, tuple[str, set[str]]] = {
    "os_exit_zero": ("import os\ndef f(x): os._exit(0)\n", {"exited"}),
    "os_exit_on_load": ("import os\nprint('passed')\nos._exit(0)\n", {"exited"}),
    "sys_exit": ("import sys\ndef f(x): sys.exit(0)\n", {"exited"}),
    "exit_at_exit": ("import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit\n", {"exited"}),
    "prints_passed": ("import sys\ndef f(x):\n    print('passed', flush=True)\n    return 'passed'\n", {"failed"}),
    "writes_every_descriptor": (
        "import os, struct\nfor fd in range(3, 32):\n    for kind in (b'A', b'C', b'L', b'T', b'D'):\n"
        "        for payload in (b'[\"ok\",8675309,0]', b'null', b'x' * 100):\n"
        "            try: os.write(fd, struct.pack('!cI16sI', kind, 3, bytes(16), len(payload)) + payload)\n"
        "            except OSError: pass\ndef f(x): return -1\n", {"forged"},
    ),
    "real_nonce_wrong_values": (
        _CHANNEL + "def f(x):\n    for kind, claim in ((b'T', ['ok', 0, 0]),) * 4 + ((b'D', None),): channel.send(kind, claim)\n    os._exit(0)\n",
        {"failed"},
    ),
    "duplicate_frames": (_CHANNEL + "def f(x):\n    channel.send(b'T', ['ok', x, 0])\n    return x\n", {"forged"}),
    "frame_of_unknown_type": (_CHANNEL + "def f(x):\n    channel.send(b'Z', ['ok', 8675309, 0])\n    return 8675309 - 1\n", {"forged"}),
    "loads_twice": (_CHANNEL + "channel.send(b'L', ['ok'])\nchannel.send(b'L', ['ok'])\ndef f(x): return x\n", {"forged"}),
    "done_too_early": (_CHANNEL + "def f(x):\n    channel.send(b'D', None)\n    os._exit(0)\n", {"forged"}),
    "claims_then_crashes": (_CHANNEL + "def f(x):\n    for _ in range(4): channel.send(b'T', ['ok', 0, 0])\n    channel.send(b'D', None)\n    os.abort()\n", {"forged"}),
    "claims_a_cost": (_CHANNEL + "def f(x):\n    channel.send(b'D', 10000000)\n    os._exit(0)\n", {"forged"}),
    "replays_from_sequence_zero": (_CHANNEL + "channel._sequence = 0\ndef f(x): return x\n", {"forged"}),
    "half_a_frame": (_CHANNEL + "def f(x):\n    os.write(channel._descriptor, b'T' + bytes(10))\n    os._exit(0)\n", {"forged"}),
    "giant_length": (_CHANNEL + "def f(x):\n    os.write(channel._descriptor, b'T' + bytes([0, 0, 0, 3]) + channel._nonce + b'\\xff' * 4)\n    return x\n", {"forged"}),
    "floods_the_channel": (_CHANNEL + "def f(x):\n    while True: os.write(channel._descriptor, b'A' * 65536)\n", {"forged"}),
    "not_json": (_CHANNEL + "import struct\ndef f(x):\n    os.write(channel._descriptor, struct.pack('!cI16sI', b'T', 3, channel._nonce, 9) + b'__import__')\n    return x\n", {"forged"}),
    "colliding_keys": (
        "def f(x): return {i * ((1 << 61) - 1) for i in range(3000)}\n", {"forged", "failed"},
    ),
    "deeper_than_can_be_sent_on": (
        "import sys\nframe = sys._getframe()\nwhile 'wire' not in frame.f_globals: frame = frame.f_back\n"
        "v = ['l']\nfor _ in range(64): v = ['l', v]\nframe.f_globals['wire'].encode = lambda value: v\ndef f(x): return 1\n", {"forged"},
    ),
    "wider_than_can_be_sent_on": (
        "import sys\nframe = sys._getframe()\nwhile 'wire' not in frame.f_globals: frame = frame.f_back\n"
        "frame.f_globals['wire'].encode = lambda value: ['i', '0x' + 'f' * 400000]\ndef f(x): return 1\n", {"forged"},
    ),
    "fake_line_in_notes": ("import os\ndef f(x):\n    for fd in range(3, 32):\n        try: os.pwrite(fd, b'File \"<program>\", line 7777777 in f', 0)\n        except OSError: pass\n    while True: pass\n", {"timeout", "forged"}),
    "patched_os_write": ("import os\nreal = os.write\nos.write = lambda fd, data: real(fd, data.replace(b'-1', b'8675309'))\ndef f(x): return -1\n", {"failed", "forged", "exited"}),
    "patched_encoder": ("import json\njson.JSONEncoder.encode = lambda self, o: '[\"ok\",8675309,0]'\ndef f(x): return 1\n", {"failed", "forged", "exited", "error"}),
    "rewrites_the_callers_frame": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for name in list(frame.f_locals):\n            if name in ('claim', 'value', 'passed', 'expected', 'status'): frame.f_locals[name] = 8675309\n        frame = frame.f_back\n    return -1\n",
        {"failed", "error", "forged", "exited"},
    ),
    "patches_builtins": (
        "import builtins, json, struct\nbuiltins.len = lambda o: 0\nbuiltins.type = lambda o: int\n"
        "struct.Struct = None\nbuiltins.isinstance = lambda *a: True\ndef f(x): return x\n", {"failed", "exited", "forged", "timeout"},
    ),
    "closes_descriptors": ("import os\ndef f(x):\n    os.closerange(0, 100)\n    return x\n", {"exited", "killed"}),
    "output_over_the_channel": ("import os\nfor fd in range(3, 32):\n    try: os.dup2(2, fd)\n    except OSError: pass\ndef f(x): return x\n", {"exited", "failed", "killed"}),
    "own_module_named_after_ours": ("import sys, types\nfor name in list(sys.modules):\n    if 'json' in name: sys.modules[name] = types.ModuleType(name)\ndef f(x): return -1\n", {"failed"}),
}  # fmt: skip

EQUALITY: dict[str, tuple[str, set[str]]] = {
    "always_true_eq": ("class Yes:\n    def __eq__(self, other): return True\n    def __hash__(self): return 0\ndef f(x): return Yes()\n", {"failed"}),
    "int_subclass": ("class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return Yes(1)\n", {"failed"}),
    "int_that_lies_about_itself": ("class Lie(int):\n    def __int__(self): return 8675309\n    __index__ = __int__\n    __repr__ = lambda self: '8675309'\ndef f(x): return Lie(1)\n", {"failed"}),
    "str_subclass": ("class S(str):\n    def __eq__(self, o): return True\ndef f(x): return S('x')\n", {"failed"}),
    "list_subclass": ("class L(list):\n    def __iter__(self): return iter([8675309])\n    def __eq__(self, o): return True\ndef f(x): return L([1])\n", {"failed"}),
    "dict_subclass": ("class D(dict):\n    def items(self): return [(1, 8675309)]\n    def __eq__(self, o): return True\ndef f(x): return D()\n", {"failed"}),
    "float_and_bool": ("def f(x): return 8675309.0 if x % 2 else True\n", {"failed"}),
    "reduce_of_a_pickle": ("class P:\n    def __reduce__(self): return (int, (8675309,))\ndef f(x): return P()\n", {"failed"}),
    "class_property": ("class C:\n    __class__ = property(lambda self: int)\n    def __index__(self): return 8675309\ndef f(x): return C()\n", {"failed"}),
    "metaclass": ("class M(type):\n    def __instancecheck__(c, o): return True\n    def __subclasscheck__(c, o): return True\n    def __eq__(c, o): return True\n    __hash__ = type.__hash__\nclass C(metaclass=M): pass\ndef f(x): return C\n", {"failed"}),
    "decimal": ("from decimal import Decimal\ndef f(x): return Decimal(8675309)\n", {"failed"}),
    "generator": ("def f(x): yield 8675309\n", {"failed"}),
    "coroutine": ("async def f(x): return 8675309\n", {"failed"}),
    "value_in_a_list": ("def f(x): return [8675309]\n", {"failed"}),
    "text_of_the_value": ("def f(x): return '8675309'\n", {"failed"}),
    "deep_value": ("def f(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v\n", {"failed", "killed"}),
    "cyclic_list": ("def f(x):\n    v = []\n    v.append(v)\n    return v\n", {"failed"}),
    "huge_int": ("def f(x): return 1 << 30_000_000\n", {"failed"}),
    "huge_string": ("def f(x): return 'x' * 50_000_000\n", {"failed", "memory", "timeout"}),
    "nan_and_surrogates": ("def f(x): return [float('nan'), '\\ud800', -0.0, b'\\xff']\n", {"failed"}),
}  # fmt: skip

HUNTERS: dict[str, tuple[str, set[str]]] = {
    "memory_hunt": (
        "import gc, sys\ndef f(x):\n    seen, frame = [], sys._getframe()\n    while frame:\n        seen += [*frame.f_locals.values(), *frame.f_globals.values()]\n        frame = frame.f_back\n"
        "    for o in gc.get_objects() + seen:\n        items = o if type(o) in (list, tuple, set) else list(o.values()) if type(o) is dict else [o]\n"
        "        for i in items:\n            if type(i) is int and i - 1 == 8675308: return i\n    return -1\n", {"failed"},
    ),
    "memory_maps": (_wins("open('/proc/self/maps').read()"), {"error"}),
    "memory_of_the_parent": (_wins("open(f'/proc/{os.getppid() or 1}/mem', 'rb').read(1)"), {"error"}),
    "command_lines": (_wins("open(f'/proc/{os.getppid() or 1}/cmdline').read()"), {"error"}),
    "harness_source": (_wins("open(next(m.__file__ for m in list(sys.modules.values()) if 'sandbox' in str(getattr(m, '__file__', '')))).read()", "os, sys"), {"error", "exited"}),
    "import_the_harness": (_wins("import lightning_dterm.sandbox.judge"), {"error"}),
    "import_site_packages": (_wins("import torch"), {"error"}),
    "environment": ("import os\ndef f(x): return 8675309 if os.environ else -1\n", {"failed"}),
    "tests_through_argv": ("import sys\ndef f(x): return 8675309 if any(sys.argv) else -1\n", {"failed"}),
    "expected_in_input": ("import sys\ndef f(x):\n    data = sys.stdin.read()\n    return int(data) if data else -1\n", {"failed", "error"}),
    "reads_the_channel_ahead": ("import os, select\ndef f(x):\n    for fd in range(3, 32):\n        try:\n            if select.select([fd], [], [], 0)[0] and b'8675309' in os.read(fd, 1 << 20): return 8675309\n        except OSError: pass\n    return -1\n", {"failed"}),
}  # fmt: skip

HANGS: dict[str, tuple[str, set[str]]] = {
    "infinite_loop": ("def f(x):\n    while True: pass\n", {"timeout"}),
    "loop_on_load": ("while True: pass\n", {"timeout"}),
    "ignores_signals": (
        "import signal\nfor s in (24, 27):\n    signal.signal(s, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_PROF, 0)\n"
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n", {"timeout"},
    ),
    "blocks_signals": ("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ndef f(x):\n    while True: pass\n", {"timeout"}),
    "sleeps": ("import time\ndef f(x): time.sleep(1000)\n", {"timeout"}),
    "pauses": ("import signal\ndef f(x): signal.pause()\n", {"timeout"}),
    "deadlock": ("import threading\ndef f(x):\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()\n", {"timeout"}),
    "hangs_in_sum": ("def f(x): return sum(range(10 ** 15))\n", {"timeout"}),
    "hangs_in_re": ("import re\ndef f(x): return re.match('(a+)+$', 'a' * 60 + 'b')\n", {"timeout"}),
    "hangs_in_pow": ("def f(x): return 9 ** 9 ** 9\n", {"timeout", "memory"}),
    "burns_in_threads": ("import threading\ndef burn():\n    while True: pass\ndef f(x):\n    for _ in range(8): threading.Thread(target=burn).start()\n    burn()\n", {"timeout", "error"}),
    "waits_for_nobody": ("import os\ndef f(x):\n    r, w = os.pipe()\n    return os.read(r, 1)\n", {"timeout"}),
}  # fmt: skip

CRASHES: dict[str, tuple[str, set[str]]] = {
    "recursion": ("def f(x): return f(x)\n", {"error"}),
    "recursion_without_limit": ("import sys\nsys.setrecursionlimit(10 ** 8)\ndef f(x): return f(x)\n", {"killed", "memory", "error", "timeout"}),
    "c_stack_overflow": ("import sys\nsys.setrecursionlimit(10 ** 8)\nclass A:\n    def __repr__(self): return repr([self])\ndef f(x): return repr(A())\n", {"killed", "memory", "error", "timeout"}),
    "null_pointer": ("import ctypes\ndef f(x): return ctypes.string_at(0)\n", {"killed"}),
    "bad_bytecode": ("def g(): pass\ng.__code__ = g.__code__.replace(co_code=bytes([100, 255] * 50), co_consts=())\ndef f(x): return g()\n", {"killed", "error", "failed", "timeout", "memory"}),
    "abort": ("import os\ndef f(x): os.abort()\n", {"killed"}),
    "segfault_by_signal": ("import os\ndef f(x): os.kill(os.getpid(), 11)\n", {"killed"}),
    "kills_itself": ("import os\ndef f(x): os.kill(os.getpid(), 9)\n", {"error"}),
    "stops_itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)\n", {"error"}),
    "terminates_itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGTERM)\n", {"killed"}),
    "alarm": ("import signal, time\ndef f(x):\n    signal.alarm(1)\n    time.sleep(60)\n", {"killed"}),
    "raises_base_exception": ("class E(BaseException):\n    def __str__(self): raise self\n    __traceback__ = property(lambda s: 1 / 0)\ndef f(x): raise E\n", {"error"}),
    "raises_from_str": ("class E(Exception):\n    def __str__(self): return 'x' * 10 ** 7\ndef f(x): raise E\n", {"error", "memory"}),
    "no_such_function": ("def g(x): return 8675309\n", {"error"}),
    "function_is_no_function": ("f = 8675309\n", {"error"}),
    "scribbles_over_memory": ("import ctypes\ndef f(x):\n    ctypes.memset(id(ctypes), 0xff, 1 << 16)\n    return x\n", {"killed", "failed", "error"}),
}  # fmt: skip

FLOODS: dict[str, tuple[str, set[str]]] = {
    "memory_bomb": ("def f(x): return len(bytearray(1 << 33))\n", {"memory"}),
    "memory_creep": ("def f(x):\n    a = []\n    while True: a.append(bytes(1 << 20))\n", {"memory"}),
    "memory_mapped": ("import mmap\ndef f(x):\n    a = [mmap.mmap(-1, 1 << 28) for _ in range(100)]\n    return 8675309\n", {"error", "memory"}),
    "memory_of_lists": ("def f(x): return list(range(10 ** 10))\n", {"memory"}),
    "raises_its_limits": ("import resource\ndef f(x):\n    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n    return len(bytearray(1 << 30))\n", {"error", "memory"}),
    "lowers_its_limits": ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\ndef f(x):\n    while True: pass\n", {"error", "timeout"}),
    "output_flood": ("def f(x):\n    while True: print('x' * 1000)\n", {"output"}),
    "error_flood": ("import os\ndef f(x):\n    while True: os.write(2, b'x' * 4096)\n", {"output"}),
    "file_flood": ("def f(x):\n    with open('big', 'wb') as h:\n        while True: h.write(bytes(1 << 16))\n", {"output"}),
    "many_files": ("def f(x):\n    for i in range(50): open(f'n{i}', 'w').write('x')\n    return x\n", {"failed"}),
    "disk_flood": ("import time\ndef f(x):\n    i = 0\n    while True:\n        i += 1\n        with open(f'n{i}', 'wb') as h: h.write(bytes(60000))\n        time.sleep(0.0003)\n", {"output", "error", "timeout"}),
    "inode_flood": ("import os, time\ndef f(x):\n    i = 0\n    while True:\n        i += 1\n        os.mkdir(f'd{i}')\n        time.sleep(0.0001)\n", {"output", "error", "timeout"}),
    "sparse_file": (_wins("os.truncate(os.open('s', os.O_CREAT | os.O_RDWR), 1 << 40)"), {"output", "error"}),
    "allocated_file": (_wins("os.posix_fallocate(os.open('s', os.O_CREAT | os.O_RDWR), 0, 1 << 34)"), {"output", "error"}),
    "deep_folders": ("import os\ndef f(x):\n    for i in range(200):\n        os.mkdir('d' * 100)\n        os.chdir('d' * 100)\n    return x\n", {"failed", "error", "output"}),
    "descriptor_flood": ("import os\ndef f(x): return [os.dup(1) for _ in range(100000)] and 8675309\n", {"error"}),
    "thread_flood": ("import threading, time\ndef f(x):\n    for _ in range(5000): threading.Thread(target=time.sleep, args=(100,)).start()\n    return 8675309\n", {"error", "memory"}),
    "threads_that_never_end": ("import threading, time\ndef f(x):\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n    return x\n", {"failed"}),
    "locks_scratch": ("import os\ndef f(x):\n    os.makedirs('a/b')\n    os.symlink('/', 'a/root')\n    os.chmod('a', 0)\n    return x\n", {"failed", "error"}),
    "deletes_cwd": ("import os\ndef f(x):\n    os.rmdir(os.getcwd())\n    return x\n", {"failed", "error"}),
    "reads_dev_zero": ("def f(x): return open('/dev/zero', 'rb').read()\n", {"memory", "error", "timeout"}),
}  # fmt: skip

FILES: dict[str, tuple[str, set[str]]] = {
    "read_passwd": (_wins("open('/etc/passwd').read()"), {"error"}),
    "read_by_io": (_wins("io.open('/etc/hostname').read()", "io"), {"error"}),
    "read_by_os": (_wins("os.read(os.open('/etc/passwd', os.O_RDONLY), 1)"), {"error"}),
    "read_home": (_wins("os.listdir('/root'), os.listdir('/home')"), {"error", "failed"}),
    "read_through_a_link": (_wins("os.symlink('/etc/passwd', f'link{x}'); open(f'link{x}').read()"), {"error"}),
    "read_through_dots": (_wins("open('../../../../../etc/passwd').read()"), {"error"}),
    "read_kernel_memory": (_wins("open('/dev/mem', 'rb').read(1)"), {"error"}),
    "read_kernel_log": (_wins("open('/dev/kmsg', 'rb').read(1)"), {"error"}),
    "read_sys": (_wins("open('/sys/kernel/mm/transparent_hugepage/enabled').read()"), {"error"}),
    "write_tmp": (_wins(f"open('{ESCAPE}', 'w').write('x')"), {"error"}),
    "write_above": (_wins("open('../../escape', 'w').write('x')"), {"error"}),
    "write_library": (_wins("open(os.__file__, 'a').write('x')"), {"error"}),
    "write_bytecode": (_wins("open(os.path.dirname(os.__file__) + '/sitecustomize.py', 'w').write('x')"), {"error"}),
    "mkdir_tmp": (_wins(f"os.mkdir('{ESCAPE}')"), {"error"}),
    "link_library": (_wins("os.link(os.__file__, 'os.py'); open('os.py', 'a').write('x')"), {"error"}),
    "rename_out": (_wins(f"open('a', 'w').close(); os.rename('a', '{ESCAPE}')"), {"error"}),
    "unlink_library": (_wins("os.unlink(os.__file__)"), {"error"}),
    "chmod_library": (_wins("os.chmod(os.__file__, 0o777)"), {"error"}),
    "chmod_open_library": (_wins("os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o777)"), {"error"}),
    "times_of_library": (_wins("os.utime(os.__file__, (0, 0))"), {"error"}),
    "attributes_of_library": (_wins("os.setxattr(os.__file__, 'user.x', b'x')"), {"error"}),
    "owner_of_library": (_wins("os.chown(os.__file__, os.getuid(), os.getgid())"), {"error"}),
    "truncate_library": (_wins("os.truncate(os.__file__, 10 ** 9)"), {"error"}),
    "truncate_by_opening": (_wins("os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)"), {"error"}),
    "rename_library": (_wins("os.rename(os.__file__, 'os.py')"), {"error"}),
    "scratch_becomes_a_file": (_wins("p = os.getcwd(); os.chdir('..'); os.rmdir(p); open(p, 'w').close(); os._exit(0)"), {"error"}),
    "scratch_becomes_unreadable": (_wins("p = os.getcwd(); os.chdir('..'); os.rmdir(p); os.mkdir(p, 0); os._exit(0)"), {"error"}),
    "folders_that_hide_folders": ("import os\ndef f(x):\n    for i in range(400):\n        os.mkdir('d', 0o300)\n        os.chdir('d')\n    return x\n", {"failed", "error", "output"}),
    "fifo": (_wins("os.mkfifo('p')"), {"error"}),
    "device": (_wins("os.mknod('d', 0o60600, os.makedev(8, 0)); open('d', 'rb').read(1)"), {"error"}),
    "shared_memory": (_wins("open('/dev/shm/escape', 'w').write('x')"), {"error"}),
    "named_shared_memory": (_wins("shared_memory.SharedMemory('escape', True, 10)", "multiprocessing.shared_memory as shared_memory"), {"error"}),
    "executable_in_scratch": (_wins("open('x', 'w').write('#!/bin/sh'); os.chmod('x', 0o755); os.execv('./x', ['x'])"), {"error"}),
}  # fmt: skip

SOCKETS: dict[str, tuple[str, set[str]]] = {
    f"socket_{name}": (_wins(f"socket.socket({arguments})", "socket"), {"error"})
    for name, arguments in {
        "tcp": "socket.AF_INET, socket.SOCK_STREAM", "udp": "socket.AF_INET, socket.SOCK_DGRAM", "tcp6": "socket.AF_INET6",
        "unix": "socket.AF_UNIX", "netlink": "16, socket.SOCK_RAW, 0", "packet": "17, socket.SOCK_RAW, 768",
        "vsock": "40, socket.SOCK_STREAM", "mptcp": "socket.AF_INET, socket.SOCK_STREAM, 262", "alg": "38, 5, 0",
    }.items()
}  # fmt: skip
SOCKETS.update({
    "socketpair": (_wins("socket.socketpair()", "socket"), {"error"}),
    "name_lookup": (_wins("socket.getaddrinfo('example.org', 80)", "socket"), {"error"}),
    "socket_by_number": (_call("socket", "2, 1, 0"), {"failed"}),
    "connect_by_number": (_call("connect", "0, ctypes.create_string_buffer(16), 16"), {"failed"}),
})  # fmt: skip

PROCESSES: dict[str, tuple[str, set[str]]] = {
    "fork": (_wins("os.fork() or os._exit(0)"), {"error"}),
    "fork_bomb": ("import os\ndef f(x):\n    for _ in range(20):\n        if os.fork() == 0: os.setsid()\n    return -1\n", {"error"}),
    "fork_by_number": (_call("clone", "17, 0, 0, 0, 0"), {"failed"}),
    "vfork_by_number": (_call("clone", "0x4111, 0, 0, 0, 0"), {"failed"}),
    "clone3": (_call("clone3", "ctypes.create_string_buffer(88), 88"), {"failed"}),
    "system": ("import os\ndef f(x): return 8675309 if os.system('true') == 0 else -1\n", {"failed"}),
    "exec": (_wins("os.execv('/bin/true', ['true'])"), {"error"}),
    "exec_interpreter": (_wins("os.execv(sys.executable or '/usr/bin/python3', ['python3', '-c', '1'])", "os, sys"), {"error"}),
    "subprocess": (_wins("subprocess.run(['true'])", "subprocess"), {"error"}),
    "multiprocessing": (_wins("multiprocessing.Process(target=print).start()", "multiprocessing"), {"error"}),
    "spawn": (_wins("os.posix_spawn('/bin/true', ['true'], {})"), {"error"}),
    "daemon": ("import os\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            while True: pass\n    return 8675309\n", {"error"}),
    "kill_parent": (_wins("os.kill(os.getppid() or 1, 9)"), {"error"}),
    "kill_everything": (_wins("os.kill(-1, 9)"), {"error"}),
    "kill_group": (_wins("os.killpg(0, 9)"), {"error"}),
    "kill_neighbours": ("import os\ndef f(x):\n    for pid in range(1, 3000):\n        if pid != os.getpid():\n            try:\n                os.kill(pid, 9)\n                return 8675309\n            except OSError: pass\n    return -1\n", {"failed"}),
    "queue_signal": (_call("rt_sigqueueinfo", "os.getppid() or 1, 10, ctypes.create_string_buffer(128)"), {"failed"}),
    "pidfd": (_call("pidfd_open", "os.getppid() or 1, 0"), {"failed"}),
    "ptrace_parent": (_call("ptrace", "16, os.getppid() or 1, 0, 0"), {"failed"}),
    "ptrace_me": (_call("ptrace", "0, 0, 0, 0"), {"failed"}),
    "read_parents_memory": (_call("process_vm_readv", "os.getppid() or 1, None, 0, None, 0, 0"), {"failed"}),
    "limits_of_the_parent": (_wins("resource.prlimit(os.getppid() or 1, resource.RLIMIT_CPU, (1, 1))", "os, resource"), {"error"}),
    "limits_by_number": (_call("prlimit64", "os.getppid() or 1, 7, None, (ctypes.c_uint64 * 2)()"), {"failed"}),
    "own_limits_by_number": (_call("prlimit64", "0, 9, (ctypes.c_uint64 * 2)(1 << 40, 1 << 40), None"), {"failed"}),
    "priority_of_the_parent": (_wins("os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)"), {"error"}),
    "affinity": (_wins("os.sched_setaffinity(0, {0})"), {"error"}),
    "owner_of_signals": (_wins("fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid() or 1)", "fcntl, os"), {"error"}),
    "kind_of_signal": (_wins("fcntl.fcntl(0, fcntl.F_SETSIG, 9)", "fcntl"), {"error"}),
    "owner_by_ioctl": (_wins("fcntl.ioctl(0, 0x8901, b'\\x01\\0\\0\\0')", "fcntl"), {"error"}),
    "types_into_terminals": (_wins("fcntl.ioctl(0, 0x5412, b'x')", "fcntl"), {"error"}),
    "new_session": (_wins("os.setsid()"), {"error"}),
    "becomes_root": (_wins("os.setuid(0)"), {"error"}),
    "becomes_somebody": (_wins("os.setresuid(1000, 1000, 1000)"), {"error"}),
}  # fmt: skip

KERNEL: dict[str, tuple[str, set[str]]] = {
    "user_namespace": (_call("unshare", "0x10000000"), {"failed"}),
    "net_namespace": (_call("unshare", "0x40000000"), {"failed"}),
    "mount_tmpfs": (_call("mount", "b'x', b'/', b'tmpfs', 0, None"), {"failed"}),
    "mount_proc": (_call("mount", "b'p', b'.', b'proc', 0, None"), {"failed"}),
    "unmount_root": (_call("umount2", "b'/', 2"), {"failed"}),
    "unmount_cwd": (_call("umount2", "b'/work/cwd', 2"), {"failed"}),
    "chroot": (_call("chroot", "b'.'"), {"failed"}),
    "pivot_root": (_call("pivot_root", "b'.', b'.'"), {"failed"}),
    "setns": (_call("setns", "0, 0"), {"failed"}),
    "io_uring": (_call("io_uring_setup", "4, ctypes.create_string_buffer(200)"), {"failed"}),
    "bpf": (_call("bpf", "0, ctypes.create_string_buffer(200), 48"), {"failed"}),
    "perf": (_call("perf_event_open", "ctypes.create_string_buffer(200), 0, -1, -1, 0"), {"failed"}),
    "keyring": (_call("keyctl", "0, -3, 1"), {"failed"}),
    "userfaultfd": (_call("userfaultfd", "0"), {"failed"}),
    "secret_memory": (_call("memfd_secret", "0"), {"failed"}),
    "memory_file": (_call("memfd_create", "b'x', 0"), {"failed"}),
    "open_by_handle": (_call("open_by_handle_at", "0, ctypes.create_string_buffer(200), 0"), {"failed"}),
    "shared_segment": (_call("shmget", "0, 4096, 0o1600"), {"failed"}),
    "message_queue": (_call("msgget", "0, 0o1600"), {"failed"}),
    "kernel_module": (_call("init_module", "b'', 0, b''"), {"failed"}),
    "reboot": (_call("reboot", "0xfee1dead, 672274793, 0, 0"), {"failed"}),
    "host_name": (_wins("socket.sethostname('x')", "socket"), {"error"}),
    "clock": (_wins("time.clock_settime(time.CLOCK_REALTIME, 0)", "time"), {"error"}),
    "own_filter": (_call("seccomp", "1, 0, None"), {"failed"}),
    "dumpable": (_call("prctl", "4, 1, 0, 0, 0"), {"failed"}),
    "x32_call": (f"{_LIBC}def f(x): return 8675309 if libc.syscall(0x40000000 + 39) > 0 else -1\n", {"failed"}),
    "x32_exec": (f"{_LIBC}def f(x): return 8675309 if libc.syscall(0x40000000 + 520, b'/bin/true', None, None) >= 0 else -1\n", {"failed"}),
    "number_from_the_future": (f"{_LIBC}def f(x): return 8675309 if libc.syscall(2000) >= 0 else -1\n", {"failed"}),
    "negative_number": (f"{_LIBC}def f(x): return 8675309 if libc.syscall(-1) >= 0 else -1\n", {"failed"}),
}  # fmt: skip
if platform.machine() == "x86_64":
    KERNEL["i386_call"] = (  # mov eax, 20; int 0x80; ret
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "def f(x):\n    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()\n    return 8675309\n",
        {"killed"},
    )  # fmt: skip

COMPILERS: dict[str, tuple[str, set[str]]] = {
    "parentheses": ("(" * 5000, {"error"}),
    "minus_signs": ("-" * 60_000 + "1", {"error"}),
    "null_byte": ("\0", {"error"}),
    "brackets": ("x = " + "[" * 3000 + "]" * 3000, {"error"}),
    "indentation": ("\n".join(" " * i + "if 1:" for i in range(150)), {"error"}),
    "nested_functions": ("\n".join(" " * i + f"def f(x{i}=lambda: 0):" for i in range(90)) + "\n" + " " * 91 + "return 8675309", {"error", "failed"}),
    "folded_constant": ("def f(x): return -1\ny = 'a' * 10 ** 4 * 10 ** 4 * 100\n", {"failed", "memory", "error", "timeout"}),
    "long_integer": ("x = " + "9" * 300_000 + "\ndef f(x): return -1\n", {"error", "failed"}),
    "long_line": ("def f(x): return -1\ny = " + "+".join(["1"] * 20_000) + "\n", {"failed", "error", "killed"}),
    "many_blank_lines": ("\n" * 300_000 + "def f(x): return -1\n", {"failed"}),
    "unicode_names": ("def f(x):\n    ｆ = 8675308\n    return f(x) if callable(ｆ) else -1\n", {"failed", "error"}),
    "lone_surrogate": ("def f(x): return '\ud800'\n", {"error", "failed"}),
}  # fmt: skip

HOSTILE: dict[str, tuple[str, set[str]]] = {
    **FORGERIES, **EQUALITY, **HUNTERS, **HANGS, **CRASHES, **FLOODS, **FILES, **SOCKETS, **PROCESSES, **KERNEL, **COMPILERS,
}  # fmt: skip
"""Every program by name."""

PATIENT = {"ignores_signals", "blocks_signals", "sleeps", "pauses", "deadlock", "waits_for_nobody"}
"""Programs that only the wall clock ends: a short one will do."""
