"""Which shell and which linker gcc's parts are started with, wherever these lie."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_dterm.sandbox.languages import CompileLimits, gcc
from lightning_dterm.sandbox.languages.backend import first_line
from lightning_dterm.sandbox.languages.gcc import CCompiler
from lightning_dterm.sandbox.languages.process import Command, Ended
from lightning_dterm.sandbox.languages.service import Service
from tests.languages_common import needs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")


class Unfenced:
    """Runs a compiler on trusted programs where the tests put it, which no fence would show."""

    limits = CompileLimits()
    headers = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, command: Command) -> Ended:
        for name, content in command.files.items():
            (self._folder / name).write_bytes(content)
        done = subprocess.run(
            command.arguments, env=dict(command.environment), cwd=self._folder, capture_output=True, check=False
        )
        outputs = tuple(path.read_bytes() if (path := self._folder / one).exists() else None for one in command.outputs)
        return Ended(done.returncode << 8, 0.0, 0.0, 0, (), "", done.stdout, done.stderr, outputs)

    def service(self, name: str, make: Callable[[], Service]) -> Service:
        raise NotImplementedError(name)


def script(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{content}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_shell_of_a_user_s_makes_nothing_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("c")
    shell = script(tmp_path / "bin" / "sh", "exit 1")
    monkeypatch.setenv("PATH", f"{shell.parent}:{os.environ['PATH']}")
    folders = [folder for folder, _ in CCompiler().rules()]
    assert os.path.realpath("/bin") in folders
    assert not [folder for folder in folders if Path(folder).is_relative_to(tmp_path)]


@pytest.mark.parametrize("folder", ["a b", "a,b", 'it\'s $(a) \\ "b";'])
def test_a_linker_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    needs("c")
    linker = script(tmp_path / folder / "ld", ': > "$0.used"; exec ld "$@"')
    monkeypatch.setattr(
        gcc, "first_line", lambda *command: str(linker) if "-print-prog-name=ld" in command else first_line(*command)
    )
    (tmp_path / "work").mkdir()
    report = CCompiler().build("c", "int main(void) { return 0; }\n", Unfenced(tmp_path / "work"))
    assert report.status == "ok", report
    assert report.artifact is not None
    assert (linker.parent / "ld.used").exists()


def test_without_a_shell_of_the_system_that_of_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("c")
    monkeypatch.setattr(gcc, "_SHELL", str(tmp_path / "missing"))
    system = os.environ["PATH"]
    for folder, fits in (("a b", True), ("a,b", False)):
        shell = script(tmp_path / folder / "sh", 'exec /bin/sh "$@"')
        monkeypatch.setenv("PATH", f"{shell.parent}:{system}")
        if fits:
            assert (str(shell.parent), "x") in CCompiler().rules()
            report = CCompiler().build("c", "int main(void) { return 0; }\n", Unfenced(tmp_path))
            assert report.status == "ok", report
        else:
            with pytest.raises(RuntimeError, match=r"comma in its path, and sh is .*/a,b/sh: provide"):
                CCompiler().rules()
            assert CCompiler("clang").rules()  # which needs none
