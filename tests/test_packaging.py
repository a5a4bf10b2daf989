from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOP = {"lightning_dterm": "lightning_dterm", "data": "lightning_dterm.data"}
TOP |= {name: f"lightning_dterm.{name}" for name in ("callbacks", "configs")}


def packages_on_disk() -> set[str]:
    found = set()
    for folder, name in TOP.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    return found


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in the wheel that the build backend makes of a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("lightning_dterm", "data", "callbacks", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "train.py"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    result = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_package_list_is_complete() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk()


def test_wheel_has_one_top_level_package(wheel_names: list[str]) -> None:
    top = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"lightning_dterm"}


def test_wheel_has_every_module_and_data_file(wheel_names: list[str]) -> None:
    expected = set()
    for folder, name in TOP.items():
        for path in (ROOT / folder).rglob("*"):
            wanted = path.suffix == ".py" or (folder == "configs" and path.suffix == ".yaml")
            wanted = wanted or "assets" in path.relative_to(ROOT / folder).parts
            if path.is_file() and wanted and "__pycache__" not in path.parts:
                expected.add("/".join([*name.split("."), *path.relative_to(ROOT / folder).parts]))
    assert expected <= set(wheel_names)
    assert "lightning_dterm/configs/strategy/fsdp2.yaml" in wheel_names
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)
    assert any(name.endswith("entry_points.txt") for name in wheel_names)


def pins() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)(?: ; (python_version [<>=]+ '[\d.]+'))?", line)
            assert match, f"not an exact pin: {line}"
            found.setdefault(re.sub(r"[-_.]+", "-", match[1]).lower(), []).append((match[2], match[3] or ""))
    return found


def test_every_dependency_is_pinned_above_its_lower_bound() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    known = pins()
    for requirement in wanted:
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)(?: ; .*)?", requirement)
        if match is None:
            assert requirement.startswith("lightning-dterm[")
            continue
        bound = [int(part) for part in match[2].split(".")]
        for version, _ in known[match[1].lower()]:
            assert [int(part) for part in version.split(".")[: len(bound)]] >= bound, requirement


def imported(folder: Path) -> dict[str, str]:
    """Top-level modules that Python files import, at their head or inside functions, and where."""
    found: dict[str, str] = {}
    for path in [folder] if folder.is_file() else folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(str(node.module))
            found |= {name.partition(".")[0]: str(path) for name in names}
    return found


def test_every_imported_library_is_declared() -> None:
    """Not by another one, which may do without it some day."""
    declared = {re.split(r"[\[><=; ]", line)[0] for line in PROJECT["project"]["dependencies"]}
    declared = {re.sub(r"[-_.]+", "-", name).lower() for name in declared}
    owners = importlib.metadata.packages_distributions()
    known = {*sys.stdlib_module_names, "lightning_dterm"}
    for folder in (*TOP, "train.py"):
        for name, path in imported(ROOT / folder).items():
            if name not in known:
                distributions = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(name, [])}
                assert distributions & declared, f"{path} imports {name}, which pyproject.toml does not require"


def test_pins_are_unambiguous() -> None:
    for name, versions in pins().items():
        markers = [marker for _, marker in versions]
        assert len(markers) == 1 or sorted(markers) == ["python_version < '3.11'", "python_version >= '3.11'"], name
    assert pins()["torch"] == [("2.13.0", "")]


def test_uninstalled_checkout_finds_its_folders(tmp_path: Path) -> None:
    for name in ("lightning_dterm", "data", "callbacks", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", tmp_path / "checkout" / "train.py")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import importlib.util;"
        "print(*(importlib.util.find_spec('lightning_dterm.' + n).origin for n in ('data', 'callbacks', 'configs')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "checkout")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    checkout = tmp_path / "checkout"
    assert result.stdout.split() == [str(checkout / n / "__init__.py") for n in ("data", "callbacks", "configs")]
