"""Inside the forked child: read one job, fence the process in, run the program, claim what it returned.

Loaded by the zygote; standard library only. The job holds the program and the arguments of its calls, never an
expected value, so nothing in this process is worth stealing and every frame it sends is only a claim.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import types
from os import _exit
from time import process_time_ns
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_dterm.sandbox import wire
from lightning_dterm.sandbox.meter import Meter
from lightning_dterm.sandbox.meter_reach import deepen

if TYPE_CHECKING:
    from lightning_dterm.sandbox.guard import Guard

FILENAME = "<program>"
MAX_COMPILE_ERRORS = 5


class Channel:
    """Sends numbered frames to the judge."""

    def __init__(self, descriptor: int, nonce: bytes) -> None:
        self._descriptor, self._nonce, self._sequence = descriptor, nonce, 0

    def send(self, kind: bytes, claim: Any) -> None:
        """Send one claim; one too large is replaced by a refusal."""
        payload = wire.dumps(claim)
        if len(payload) > wire.MAX_FRAME:
            payload = wire.dumps(["refused", "value too large", None, 0])
        frame = wire.pack_frame(kind, self._sequence, self._nonce, payload)
        while frame:
            frame = frame[os.write(self._descriptor, frame) :]
        self._sequence += 1


def note_hangs(notes: int) -> None:
    """Have whoever kills by these signals (a CPU limit, the zygote on the wall clock) first get the line, in C too.

    Done in the zygote, for all its children: ``notes`` is the descriptor under which each finds a file of its own.
    """
    for number in (signal.SIGPROF, signal.SIGXCPU):
        faulthandler.register(number, file=notes, all_threads=False, chain=True)


def child_main(
    connection: int, guard: Guard, parent: int, limits: tuple[float, int, int], cwd: str, notes: int
) -> NoReturn:
    """Entry point of the forked child; never returns.

    Args:
        connection: Descriptor of the private channel to the judge.
        guard: The fences.
        parent: Pid of the zygote.
        limits: CPU seconds, bytes of address space, bytes of one file.
        cwd: The scratch folder.
        notes: A file in memory for the stack of a hang.
    """
    try:
        gc.disable()
        try:  # noqa: SIM105 - one of hundreds of page faults less
            os.setsid()
        except PermissionError:  # a session's leader already
            pass
        _arrange_descriptors()
        nonce, cost_pass, program, entry_point, calls = wire.unpack_job(_read(connection))
        channel = Channel(connection, nonce)
        os.chdir(cwd)
        guard.enter(parent, *limits)
        low, high = (connection, notes) if connection < notes else (notes, connection)
        os.closerange(3, low)
        os.closerange(low + 1, high)
        os.closerange(high + 1, 1024)
        signal.setitimer(signal.ITIMER_PROF, limits[0])
        channel.send(wire.ACCEPTED, None)
    except BrokenPipeError:
        os._exit(0)  # the judge took the job back: see Slot.turn
    except BaseException as error:
        os.write(notes, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace")[:500])
        os._exit(wire.NOT_FENCED)
    gc.enable()
    status = 1  # a program that broke its own harness must not go on in the zygote's code
    try:
        (run_metered if cost_pass else run)(channel, program, entry_point, calls)
        status = 0
    finally:
        _exit(status)


def _arrange_descriptors() -> None:
    """Make 0, 1 and 2 one sink in memory that RLIMIT_FSIZE caps, and that is empty when read where it was written to.

    Nothing here is the zygote's: flags set on its /dev/null would reach the next program.
    """
    sink = os.memfd_create("output")
    os.dup2(sink, 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)


def _read(connection: int) -> bytes:
    """The job, which the judge has sent or is sending."""
    job = b""
    while len(job) < wire.LENGTH.size or len(job) < wire.LENGTH.size + wire.LENGTH.unpack_from(job)[0]:
        part = os.read(connection, 1 << 18)
        if not part:
            os._exit(0)  # the judge is gone
        job += part
    return job[wire.LENGTH.size :]


REHEARSAL = """
from typing import List, Optional
import math

def f(values: List[int], text: str, table: dict) -> list:
    found, seen = [], set()
    for i, value in enumerate(values):
        if value not in seen and (i % 2 == 0 or value > 1):
            seen.add(value)
            found.append(value ** 2 + abs(-value) // 2)
    words = text.lower().split(" ")
    words.sort(key=lambda word: (len(word), word))
    counts = {word: words.count(word) for word in words if word.isalpha()}
    table.update(counts)
    while found and found[-1] % 2:
        found.pop()
    try:
        best = max(found)
    except ValueError:
        best = None
    return [sorted(found), "".join(reversed(words)), f"{best:d}", sum(v for v in seen), table, math.sqrt(4.0), str(i)]
"""


def rehearse(rounds: int) -> None:
    """In the zygote, with a program of ours: run what every child will run.

    CPython fills caches and rewrites byte code as it runs. Done here, it is done once; done in a child, each page that
    it touches is first copied, which used to cost a child more than the program did.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for _ in range(rounds):
            calls = wire.pack_calls([([3, 1, 2, 2, n], "To be or not", {"a": (1, 2.5, None)}) for n in range(3)])
            job = wire.pack_job(bytes(16), False, REHEARSAL, "f", calls)
            nonce, _, program, entry_point, arguments = wire.unpack_job(job[wire.LENGTH.size :])
            channel = Channel(nowhere, nonce)
            channel.send(wire.ACCEPTED, None)
            run(channel, program, entry_point, arguments)
            run(channel, "def g(:\n    pass\n", None, [])
            del sys.modules["program"]
    finally:
        os.close(nowhere)


def run(channel: Channel, program: str, entry_point: str | None, calls: list[Any]) -> None:
    """Compile, load and call, with a claim for each step."""
    code, errors = compile_program(program)
    channel.send(wire.COMPILED, errors)
    if code is None or entry_point is None:
        channel.send(wire.DONE, None)
        return
    module = types.ModuleType("program")
    sys.modules["program"] = module
    _load_and_call(channel, code, module.__dict__, entry_point, calls)
    channel.send(wire.DONE, None)


def run_metered(channel: Channel, program: str, entry_point: str | None, calls: list[Any]) -> None:
    """The second pass of a program that passed: the same calls, counting operations (see ``meter``)."""

    def stop(cost: int) -> NoReturn:
        channel.send(wire.DONE, cost)
        _exit(0)

    meter = Meter(wire.MAX_COST, stop)
    try:
        code, space = meter.prepare(program, FILENAME)
    except BaseException as error:
        channel.send(wire.COMPILED, 0)
        channel.send(wire.LOADED, _describe(error))
        channel.send(wire.DONE, None)
        return
    deepen()
    channel.send(wire.COMPILED, process_time_ns() // 1000)  # what it took so far is no work of the program's
    if _load_and_call(channel, code, space, entry_point, calls):
        stop(min(meter.cost, wire.MAX_COST))
    channel.send(wire.DONE, None)


def _load_and_call(
    channel: Channel, code: types.CodeType, space: dict[str, Any], entry_point: str | None, calls: list[Any]
) -> bool:
    try:
        exec(code, space)
        function = space[entry_point or ""]
    except BaseException as error:
        channel.send(wire.LOADED, _describe(error))
        return False
    channel.send(wire.LOADED, ["ok"])
    for arguments in calls:
        started = process_time_ns()
        claim = _call(function, arguments)
        channel.send(wire.TEST, [*claim, (process_time_ns() - started) // 1000])
    return True


def _call(function: Any, arguments: tuple[Any, ...]) -> list[Any]:
    try:
        value = function(*arguments)
    except BaseException as error:
        return _describe(error)
    try:
        return ["ok", wire.encode(value)]
    except BaseException as error:
        return ["refused", _text(error), None]


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__[:300]


def _describe(error: BaseException) -> list[Any]:
    """``[kind, "Type: message", line]`` of an exception, its innermost line in the program."""
    kind = "memory" if isinstance(error, MemoryError) else "exited" if isinstance(error, SystemExit) else "raised"
    line = None
    try:
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == FILENAME:
                line = int(trace.tb_lineno)
            trace = trace.tb_next
    except BaseException:
        line = None
    return [kind, _text(error), line]


def compile_program(program: str) -> tuple[types.CodeType | None, list[list[Any]]]:
    """Compile, and on failure look for further errors.

    CPython stops at the first error. Further ones are found by blanking the offending line (keeping its indentation,
    and ``pass``, or a sound header of its kind where a block follows) and compiling again, until it compiles, an
    error falls on a line already blanked, or :data:`MAX_COMPILE_ERRORS` are found.

    Returns:
        The code object or None, and the errors as ``[message, line, column, end_line, end_column]``, all 1-based.
    """
    errors: list[list[Any]] = []
    lines = program.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    source, blanked = program, set()
    while len(errors) < MAX_COMPILE_ERRORS:
        try:
            code = compile(source, FILENAME, "exec", dont_inherit=True)
            return (code if not errors else None), errors
        except SyntaxError as error:
            line = min(max(error.lineno or 1, 1), len(lines))
            found = [str(error.msg), line, error.offset or 1, error.end_lineno or line, error.end_offset or 0]
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            errors.append([_text(error), 1, 1, 1, 1])
            break
        if line in blanked:
            break
        errors.append(found)
        blanked.add(line)
        lines[line - 1] = _blank(lines, line - 1)
        source = "\n".join(lines)
    return None, errors


_HEADERS = {
    "def": "def _():", "async": "async def _():", "class": "class _:", "for": "while 1:", "while": "while 1:",
    "try": "try:", "except": "except Exception:", "finally": "finally:", "else": "else:", "elif": "elif 1:",
}  # fmt: skip


def _blank(lines: list[str], index: int) -> str:
    """What replaces an offending line, so that the lines after it are not errors because of it."""
    text = lines[index]
    indent = text[: len(text) - len(text.lstrip())]
    following = next((line for line in lines[index + 1 :] if line.strip()), "")
    if len(following) - len(following.lstrip()) <= len(indent):
        return indent + "pass"
    words = text.replace(":", " ").replace("(", " ").split()
    return indent + _HEADERS.get(words[0] if words else "", "if 1:")
