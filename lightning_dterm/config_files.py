"""Mistakes in layered configuration files, told with the file they are in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

_SUBCLASSES = ("model", "data")  # options that need a class before its settings
_KEYS = re.compile(r"(?:[Oo]ption|Parser key|Key) ['\"]([\w.]+)['\"]")


class Layer(NamedTuple):
    """One ``--config FILE``: the file, what it holds, and which classes were named before it."""

    file: str
    settings: dict[str, Any]
    named: frozenset[str]


class ConfigFileError(ValueError):
    """A configuration file that cannot be used; the message names it."""


def read_layers(arguments: Sequence[str]) -> list[Layer]:
    """The configuration files among ``arguments``, in their order; configurations given in place are left out.

    Raises:
        ConfigFileError: If a file is not YAML, empty, or no mapping.
    """
    layers: list[Layer] = []
    named: set[str] = set()
    for option, value in _options(arguments):
        if option in _SUBCLASSES or option.removesuffix(".class_path") in _SUBCLASSES:
            named.add(option.removesuffix(".class_path"))
        elif option in ("c", "config") and ("\n" in value or value.lstrip().startswith("{")):
            named |= set(_SUBCLASSES)  # given in place and not read here: it may name them
        elif option in ("c", "config"):
            settings = _read(value)
            layers.append(Layer(value, settings, frozenset(named)))
            named |= {key for key in _SUBCLASSES if _names_class(settings.get(key))}
            named |= {key for key in _SUBCLASSES if f"{key}.class_path" in settings}
    return layers


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``--name=value``, ``--name value`` and ``-c value`` as pairs; the value of a flag is whatever follows it."""
    for index, argument in enumerate(arguments):
        if argument.startswith("-"):
            name, given, value = argument.lstrip("-").partition("=")
            if argument.startswith("-c") and argument not in ("-c", "-c="):  # -cFILE
                name, given, value = "c", "=", argument.removeprefix("-c")
            following = arguments[index + 1] if index + 1 < len(arguments) else ""
            yield name, value if given else following


def _names_class(settings: Any) -> bool:
    return isinstance(settings, str) or (isinstance(settings, dict) and "class_path" in settings)


def _read(file: str) -> dict[str, Any]:
    try:
        with open(file, encoding="utf-8") as text:
            settings = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"configuration file {file} is not YAML: problem in parsing it: {error}") from error
    if settings is None:
        raise ConfigFileError(f"configuration file {file} is empty, or has only comments: leave it out")
    if not isinstance(settings, dict):
        raise ConfigFileError(f"configuration file {file} must hold keys and values, not {settings!r}")
    return settings


def check_layers(layers: Sequence[Layer], known: set[str]) -> None:
    """Refuse what the parser would pass over, or complain of without saying what is missing.

    Args:
        layers: The files, in order.
        known: Names a file may have at its top level.

    Raises:
        ConfigFileError: For a name that is not known, or settings of a class that nothing before has named.
    """
    for layer in layers:
        for key, value in layer.settings.items():
            name = str(key).split(".")[0].removesuffix("+")
            if name not in known:
                allowed = ", ".join(sorted(known))
                raise ConfigFileError(f"{key} in {layer.file} is not an option: there are {allowed}")
            has_settings = isinstance(value, dict) and "init_args" in value and "class_path" not in value
            if name in _SUBCLASSES and name not in layer.named and has_settings:
                raise ConfigFileError(
                    f"no {name} class: {layer.file} has settings of one ({name}.init_args), and nothing before it "
                    f"names it: put a complete --config before it (such as configs/base.yaml), or --{name} CLASS"
                )


def locate(message: str, layers: Sequence[Layer], arguments: Sequence[str]) -> str | None:
    """Where the key stands that a parser's ``message`` complains of: a file, or the several that have it.

    Returns:
        None where no file has it, or the command line may have it, too.
    """
    found = _KEYS.search(message)
    if found is None:
        return None
    path = found[1].split(".")
    files = {layer.file for layer in layers}
    word = re.compile(rf"\b{re.escape(path[-1])}\b")
    if any(word.search(argument) for argument in arguments if argument not in files):
        return None
    having = list(dict.fromkeys(layer.file for layer in layers if _has(layer.settings, path)))
    return having[0] if len(having) == 1 else f"one of {', '.join(having)}" if having else None


def _has(settings: Any, path: list[str]) -> bool:
    """Whether ``path`` leads somewhere from any level of ``settings``."""
    if isinstance(settings, list):
        return any(_has(item, path) for item in settings)
    if not isinstance(settings, dict):
        return False
    return _leads(settings, path) or any(_has(value, path) for value in settings.values())


def _leads(settings: Any, path: list[str]) -> bool:
    if not path:
        return True
    if not isinstance(settings, dict):
        return False
    ways = (".".join(path[:length]) for length in range(1, len(path) + 1))  # a file may write keys with dots
    return any(_leads(settings[way], path[way.count(".") + 1 :]) for way in ways if way in settings)
