"""Inside the forked child: read one job, fence the process in, run the program, claim what it returned.

Loaded by the worker by path; standard library only. The job holds the program and the arguments of its calls, never an
expected value, so nothing in this process is worth stealing and every frame it sends is only a claim.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from lightning_dterm.sandbox import wire
else:
    import wire  # put in sys.modules by the worker

if TYPE_CHECKING:
    from lightning_dterm.sandbox.guard import Guard

FILENAME = "<program>"
COST_CAP = 2_000_000
MAX_COMPILE_ERRORS = 5


class Channel:
    """Sends numbered frames to the judge."""

    def __init__(self, connection: socket.socket, nonce: bytes) -> None:
        self._connection, self._nonce, self._sequence = connection, nonce, 0

    def send(self, kind: bytes, claim: Any) -> None:
        """Send one claim; one too large is replaced by a refusal."""
        payload = wire.dumps(claim)
        if len(payload) > wire.MAX_FRAME:
            payload = wire.dumps(["refused", "value too large", None])
        self._connection.sendall(wire.pack_frame(kind, self._sequence, self._nonce, payload))
        self._sequence += 1


class LineCounter:
    """Counts line events of the program's own frames by ``sys.settrace``; library code costs nothing.

    The same events on every supported Python, but bytecode differs, so counts compare within one Python version only.
    """

    def __init__(self) -> None:
        self.count = 0
        self.channel: Channel | None = None

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        """Global trace function: follow frames compiled from the program (or from strings it evaluates)."""
        name = frame.f_code.co_filename
        return self._local if name.startswith("<") and not name.startswith("<frozen") else None

    def _local(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count >= COST_CAP:
                self.finish()
        return self._local

    def finish(self) -> None:
        """Report the count (or that the program meddled with tracing) and leave."""
        undisturbed = sys.gettrace() is self
        sys.settrace(None)
        assert self.channel is not None
        self.channel.send(wire.DONE, min(self.count, COST_CAP) if undisturbed else None)
        os._exit(0)


def child_main(connection: socket.socket, guard: Guard, parent: int, limits: tuple[float, int, int], cwd: str) -> None:
    """Entry point of the forked child; never returns."""
    try:
        gc.disable()
        os.setsid()
        _arrange_descriptors()
        size = wire.LENGTH.unpack(_read(connection, wire.LENGTH.size))[0]
        nonce, cost_pass, program, entry_point, calls = wire.loads(_read(connection, size))
        channel = Channel(connection, bytes.fromhex(nonce))
        os.chdir(cwd)
        guard.enter(parent, *limits)
        os.closerange(3, connection.fileno())
        os.closerange(connection.fileno() + 1, 1024)
        for name in ("wire", "guard", "harness"):
            sys.modules.pop(name, None)
        signal.setitimer(signal.ITIMER_PROF, limits[0])
        channel.send(wire.ACCEPTED, None)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
        os._exit(120)
    gc.enable()
    _run(channel, program, entry_point, calls, cost_pass)
    os._exit(0)


def _arrange_descriptors() -> None:
    """Make 1 and 2 a sink in memory that RLIMIT_FSIZE caps; 0 is the zygote's own /dev/null."""
    sink = os.memfd_create("output")
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)


def _read(connection: socket.socket, size: int) -> bytes:
    parts, missing = [], size
    while missing:
        part = connection.recv(min(missing, 1 << 20))
        if not part:
            os._exit(0)  # the judge is gone
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _run(channel: Channel, program: str, entry_point: str | None, calls: list[Any], cost_pass: bool) -> None:
    code, errors = compile_program(program, canonical=cost_pass)
    channel.send(wire.COMPILED, errors)
    if code is None or entry_point is None:
        channel.send(wire.DONE, None)
        return
    module = types.ModuleType("program")
    sys.modules["program"] = module
    counter = LineCounter() if cost_pass else None
    if counter is not None:
        counter.channel = channel
        sys.settrace(counter)
    try:
        exec(code, module.__dict__)
        function = module.__dict__[entry_point]
    except BaseException as error:
        channel.send(wire.LOADED, _describe(error))
        channel.send(wire.DONE, None)
        return
    channel.send(wire.LOADED, ["ok"])
    for arguments in calls:
        channel.send(wire.TEST, _call(function, wire.decode(arguments)))
    if counter is not None:
        counter.finish()
    channel.send(wire.DONE, None)


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


def compile_program(program: str, canonical: bool = False) -> tuple[types.CodeType | None, list[list[Any]]]:
    """Compile, and on failure look for further errors.

    CPython stops at the first error. Further ones are found by blanking the offending line (keeping its indentation,
    and ``pass``, or a sound header of its kind where a block follows) and compiling again, until it compiles, an
    error falls on a line already blanked, or :data:`MAX_COMPILE_ERRORS` are found.

    Args:
        program: Source text.
        canonical: Compile ``ast.unparse`` of it, one statement a line, so that layout cannot change a line count.

    Returns:
        The code object or None, and the errors as ``[message, line, column, end_line, end_column]``, all 1-based.
    """
    errors: list[list[Any]] = []
    lines = program.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    source, blanked = program, set()
    while len(errors) < MAX_COMPILE_ERRORS:
        try:
            if canonical:
                import ast

                source = ast.unparse(ast.parse(source))
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
