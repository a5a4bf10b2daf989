"""Compiles and runs hostile and honest programs as nobody: ``python -m tests.languages_unprivileged MODE``; JSON."""

from __future__ import annotations

import glob
import json
import os
import sys
import tempfile

from lightning_dterm.sandbox.languages import (
    CompileLimits,
    Compilers,
    IOTest,
    LauncherUnavailable,
    ProgramJob,
    Programs,
)
from lightning_dterm.sandbox.result import Limits
from tests.languages_common import children


def main(mode: str) -> None:
    """Everything that is installed here, in one process; the compile bombs are left to the suite that runs as root."""
    from tests.test_languages import GOOD, HOSTILE
    from tests.test_languages_run import HEAD, REFUSED

    wrong, count, levels = [], 0, set()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        with Compilers(slots=1, limits=CompileLimits(wall_s=500.0), namespaces=mode == "namespaces") as compilers:
            try:
                for language, program in GOOD:
                    if compilers.supports(language) and language != "python":
                        report = compilers.check(language, program)
                        count += 1
                        if report is None or report.status != "ok":
                            wrong.append(f"{language}: {report}")
            except LauncherUnavailable as error:
                print(error, file=sys.stderr)
                sys.exit(77)
            for language, program, statuses in HOSTILE:
                if language in ("c", "javascript") and len(program) < 200 and compilers.supports(language):
                    report = compilers.check(language, program)
                    count += 1
                    if report is None or report.status not in statuses or "root:" in str(report.diagnostics):
                        wrong.append(f"{program!r}: {report}")
            lines = "".join(f'puts(({code}) ? "refused" : "OPEN: {name}");' for name, code in REFUSED.items())
            runner = Programs(compilers, Limits(cpu_s=2.0, wall_s=300.0))
            tests = (IOTest("", "refused\n" * len(REFUSED)),)
            result = runner.run(ProgramJob("c", HEAD + f"int main(void) {{ {lines} return 0; }}", tests))
            count += 1
            assert result is not None
            levels.add(result.level)
            if mode == "namespaces" and result.level != mode:
                print("no namespaces for unprivileged users here", file=sys.stderr)
                sys.exit(77)
            if not result.passed:
                wrong.append(f"refused: {result}")
        left = [*glob.glob(f"{folder}/lightning-dterm-*"), *children()]
        tempfile.tempdir = None
    (level,) = levels
    print(json.dumps({"uid": os.getuid(), "programs": count, "level": level, "wrong": wrong, "left": left}))


if __name__ == "__main__":
    main(sys.argv[1])
