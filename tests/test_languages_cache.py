"""The compile cache (written once, never through links) and precompiled headers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_dterm.sandbox.languages import CompileCache, CompileLimits, Compilers, Diagnostic, Report
from lightning_dterm.sandbox.languages.gcc import CCompiler, leading_headers
from lightning_dterm.sandbox.process import read_back
from tests.languages_common import children, folders, needs, own_temporary_folder

__all__ = ["own_temporary_folder"]
REPORT = Report("c", "gcc 1", "errors", (Diagnostic("error", "é", 1, 2, 3, 4),), 0.5, None)
BUILT = Report("c", "gcc 1", "ok", (), 0.5, b"\0\n\xffELF")


def files(cache: CompileCache) -> list[Path]:
    return [path for path in Path(cache.folder).rglob("*") if path.is_file()]


def test_reports_and_artifacts_come_back_in_another_process_s_cache(tmp_path: Path) -> None:
    first = CompileCache(tmp_path)
    first.put("a" * 64, REPORT)
    first.put("b" * 64, BUILT)
    second = CompileCache(tmp_path)
    found, built = second.get("a" * 64), second.get("b" * 64)
    assert found is not None
    assert built is not None
    assert (found.diagnostics, found.status, found.cached) == (REPORT.diagnostics, "errors", True)
    assert built.artifact == BUILT.artifact
    assert second.get("c" * 64) is None
    assert (second.hits, second.misses) == (2, 1)


def test_what_is_written_stays(tmp_path: Path) -> None:
    key = CompileCache.key("x")
    CompileCache(tmp_path).put(key, BUILT)
    CompileCache(tmp_path).put(key, Report("c", "gcc 1", "ok", (), 0.0, b"other"))
    assert CompileCache(tmp_path).get(key).artifact == BUILT.artifact  # type: ignore[union-attr]
    assert len(files(CompileCache(tmp_path))) == 1


def test_torn_and_foreign_files_are_misses(tmp_path: Path) -> None:
    key = CompileCache.key("x")
    CompileCache(tmp_path).put(key, BUILT)
    (path,) = files(CompileCache(tmp_path))
    content = path.read_bytes()
    for broken in (content[:-1], b"", content.replace(b"ELF", b"EVL"), b"x" * 100):
        path.write_bytes(broken)
        assert CompileCache(tmp_path).get(key) is None
        assert not path.exists()
        CompileCache(tmp_path).put(key, BUILT)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(content)
    path.unlink()
    path.symlink_to(elsewhere)
    assert CompileCache(tmp_path).get(key) is None
    path.unlink()
    os.mkfifo(path)
    assert CompileCache(tmp_path).get(key) is None


def test_our_own_failures_and_timeouts_are_not_written(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path)
    cache.put("a" * 64, Report("c", "gcc", "infra"))
    cache.put("b" * 64, Report("c", "gcc", "timeout"))
    assert cache.get("a" * 64) is None
    assert cache.get("b" * 64).status == "timeout"  # type: ignore[union-attr]
    assert files(cache) == []


def test_it_stays_below_its_size(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, max_mb=1)
    for index in range(30):
        cache.put(CompileCache.key(str(index)), Report("c", "gcc", "ok", (), 0.0, bytes([index]) * 100_000))
    assert sum(path.stat().st_size for path in files(cache)) <= 1 << 20
    assert len(files(cache)) >= 5
    with pytest.raises(ValueError, match="max_mb"):
        CompileCache(tmp_path, max_mb=0)


def test_a_temporary_cache_goes_away() -> None:
    cache = CompileCache()
    cache.put("a" * 64, BUILT)
    assert os.path.isdir(cache.folder)
    cache.close()
    assert not os.path.exists(cache.folder)


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_keys_differ_where_parts_differ(one: list[str], other: list[str]) -> None:
    assert (CompileCache.key(*one) == CompileCache.key(*other)) == (one == other)


def test_outputs_are_never_read_through_links(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(b"data")
    assert read_back(str(real), 4) == b"data"
    assert read_back(str(real), 3) is None
    (tmp_path / "link").symlink_to(real)
    assert read_back(str(tmp_path / "link"), 10) is None
    os.link(real, tmp_path / "hard")
    assert read_back(str(tmp_path / "hard"), 10) is None
    os.mkfifo(tmp_path / "pipe")
    assert read_back(str(tmp_path / "pipe"), 10) is None
    assert read_back(str(tmp_path), 10) is None
    assert read_back("/dev/zero", 10) is None


# --- precompiled headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "headers"),
    [
        ("#include <vector>\n#include <map>\nint main() {}", ("map", "vector")),
        ("// a\n/* b\n c */\n  #  include <vector> // x\r\n\n#include<bits/stdc++.h>\n", ("bits/stdc++.h", "vector")),
        ("#define private public\n#include <vector>\n", ()),
        ("#include <vector>\n#define X\n#include <map>\n", ("vector",)),
        ('#include "vector"\n', ()),
        ("#include <../../etc/passwd>\n", ()),
        ("#include <vector> junk\n", ()),
        ("/* x */ #include <vector>\n", ()),
        ("// a \\\n#include <vector>\n", ()),
        ("int x;\n#include <vector>\n", ()),
        ("#include <vector>", ("vector",)),
        ("", ()),
    ],
)
def test_leading_headers(source: str, headers: tuple[str, ...]) -> None:
    assert leading_headers(source) == headers


@settings(max_examples=100)
@given(st.text(alphabet="#include <vector>\n/*\\ x", max_size=80))
def test_leading_headers_end(source: str) -> None:
    assert set(leading_headers(source)) <= {"vector"}


@pytest.fixture(scope="module")
def compilers(own_temporary_folder: None) -> Iterator[Compilers]:
    with Compilers(slots=1, limits=CompileLimits(cpu_s=30.0, wall_s=900.0)) as found:
        yield found
    assert (children(), folders()) == ([], set())


def test_precompiled_headers_change_nothing_but_the_time(compilers: Compilers) -> None:
    needs("cpp")
    good = "#include <bits/stdc++.h>\nint main() { std::vector<int> v{3, 1}; std::sort(v.begin(), v.end()); }\n"
    bad = "#include <bits/stdc++.h>\nint main() {\n  std::vector<int> v;\n  v.push_bak(1);\n}\n"
    compilers.check("cpp", "#include <bits/stdc++.h>\nint x;\n")
    assert any(name.endswith(".gch") for name in os.listdir(compilers.headers))
    with Compilers(slots=1, limits=compilers.limits, backends=[CCompiler(precompile=False)]) as plain:
        for program in (good, bad):
            fast, slow = compilers.check("cpp", program), plain.check("cpp", program)
            assert fast is not None
            assert slow is not None
            assert (fast.status, fast.diagnostics) == (slow.status, slow.diagnostics)
            assert fast.cpu_s < slow.cpu_s
        missing = "#include <vector>\nint main() { std::map<int, int> m; }\n"
        for _ in range(4):  # often enough for its own headers to be precompiled, which must not lend it <map>
            report = compilers.check("cpp", missing + f"// {_}\n")
            assert report is not None
            assert report.status == "errors"


# --- the launcher ---------------------------------------------------------------------------------------------------
