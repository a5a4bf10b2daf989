"""Measures syntax flags: cost by program length, false alarms, what is found, and SynCode beside them.

    python benchmarks/syntax.py [--functions 500] [--others 60] [--out benchmarks/results/syntax.json]

Programs are functions of this Python's standard library, one after the other up to 10, 50, 100 and 300 lines, tokenized
with the packaged tokenizer. ``post_hoc_*``: one check of a finished program, divided by its tokens; in the broken one a
token near the end is a stray bracket. ``online``: a session fed token by token. ``whole_prefix``: the same flags by
judging the whole prefix at every token, which is what the session saves.

False alarms: prefixes of real programs that are called hopeless. Those of the other languages are counted on published
functions, where the benchmark data is (``LIGHTNING_DTERM_SHARED``); tree-sitter's own ``has_error`` on the same
prefixes stands beside them. SynCode runs where ``SYNCODE_PYTHON`` names an interpreter that has it: its incremental
parser is timed on random tokens of the same programs, right after it has parsed the text before the token.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tree_sitter
import tree_sitter_python
from transformers import AutoTokenizer

from benchmarks import provenance
from lightning_dterm.attribution.offsets import TokenOffsets
from lightning_dterm.structure.process import language_of
from lightning_dterm.syntax import TreeSitterChecker, checker_for
from lightning_dterm.syntax.clike import LANGUAGES, lexemes
from lightning_dterm.syntax.viability import viable
from tests.syntax_common import mutate, parses, rows, shared_functions, stdlib_functions, token_ends

LINES = (10, 50, 100, 300)
SYNCODE_LINES = 100  # at 300 lines it takes seconds a token and minutes to get to the first
SYNCODE = """
import json, logging, random, statistics, sys, time
logging.disable(logging.CRITICAL)
from syncode.parsers import create_parser
from syncode.parsers.grammars import Grammar
found = {}
for lines, (pieces, budget) in json.load(sys.stdin).items():
    parser, times, errors, started = create_parser(Grammar("python")), [], 0, time.perf_counter()
    order = random.Random(0).sample(range(1, len(pieces)), min(40, len(pieces) - 1))
    for place in order:
        for timed, text in ((False, "".join(pieces[:place])), (True, "".join(pieces[:place + 1]))):
            before = time.perf_counter()
            try:
                parser.get_acceptable_next_terminals(text)
            except Exception:
                errors += timed
            if timed:
                times.append(time.perf_counter() - before)
        if time.perf_counter() - started > budget:
            break
    found[lines] = {"us_per_token": round(statistics.mean(times) * 1e6, 1), "tokens_sampled": len(times),
                    "of_tokens": len(pieces), "errors": errors}
json.dump(found, sys.stdout)
"""


def programs(seed: int) -> dict[int, str]:
    """Programs of each length."""
    functions = stdlib_functions(60, seed=seed, longest=3000)
    found = {}
    for lines in LINES:
        fitting = [f for f in functions if f.count("\n") <= lines]
        text, index = "", 0
        while text.count("\n") < lines:
            text += fitting[index % len(fitting)].rstrip("\n") + "\n"
            index += 1
        kept = text.splitlines(keepends=True)[:lines]
        while kept and not parses("".join(kept)):
            kept.pop()
        found[lines] = "".join(kept)
    return found


def best(work: Callable[[], Any], repeats: int) -> float:
    """The least of some wall-clock times, which other load disturbs least, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def follow(language: str, pieces: list[str]) -> None:
    """Feed a session; every step must be viable."""
    session = checker_for(language).session()
    if not all(session.append(piece) for piece in pieces):
        raise SystemExit("a false alarm while measuring")


def pieces_of(tokenizer: Any, program: str) -> list[str]:
    """The program as its tokens write it."""
    text, spans = TokenOffsets(tokenizer).char_spans(tokenizer(program, add_special_tokens=False).input_ids)
    return [text[start:end] for start, end in spans]


def cost(tokenizer: Any, seeds: int, repeats: int) -> dict[str, Any]:
    """Microseconds per token by length, the median over several programs."""
    table: dict[int, dict[str, list[float]]] = {lines: {} for lines in LINES}
    checker = checker_for("python")
    for seed in range(seeds):
        for lines, program in programs(seed).items():
            pieces = pieces_of(tokenizer, program)
            at = sum(map(len, pieces[: int(0.95 * len(pieces))]))
            broken = program[:at] + ") ]" + program[at:]
            sample = range(1, len(pieces), max(len(pieces) // 40, 1))
            prefixes = ["".join(pieces[:n]) for n in sample]
            times = {
                "tokens": len(pieces) / 1e6,  # a count, in the column's millionths
                "post_hoc_valid": best(lambda p=program: checker.check(p), repeats) / len(pieces),  # type: ignore[misc]
                "post_hoc_broken": best(lambda p=broken: checker.check(p), repeats) / len(pieces),  # type: ignore[misc]
                "online": best(lambda p=pieces: follow("python", p), repeats) / len(pieces),  # type: ignore[misc]
                "whole_prefix": best(lambda p=prefixes: [viable(x) for x in p], 1) / len(prefixes),  # type: ignore[misc]
            }
            for name, seconds in times.items():
                table[lines].setdefault(name, []).append(seconds * 1e6)
    return {
        str(lines): {name: round(statistics.median(times), 2) for name, times in row.items()}
        for lines, row in table.items()
    }


def false_alarms_python(count: int) -> dict[str, Any]:
    """Every character prefix of real functions, and agreement on mutants with two other parsers."""
    functions, alarms, prefixes = stdlib_functions(count, seed=1), 0, 0
    for function in functions:
        for end in range(len(function) + 1):
            prefixes += 1
            alarms += not viable(function[:end])
    rng, checker, agree, same = random.Random(2), checker_for("python"), 0, 0
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))
    for function in functions:
        program = mutate(function, rng, token_ends(function))
        good = checker.check(program).kind == "ok"
        same += good == parses(program)
        agree += good == (not parser.parse(program.encode()).root_node.has_error)
    return {
        "functions": len(functions), "character_prefixes": prefixes, "false_alarms": alarms, "mutants": len(functions),
        "agrees_with_ast_parse": round(same / len(functions), 4),
        "agrees_with_tree_sitter_python": round(agree / len(functions), 4),
    }  # fmt: skip


def others(language: str, count: int, tokenizer: Any) -> dict[str, Any]:
    """False alarms, what is found of broken programs, and cost, in a language judged by tree-sitter."""
    checker, rng = TreeSitterChecker(language), random.Random(3)
    functions = shared_functions(language, count)
    good = [function for function in functions if checker.complete(function)]
    prefixes = alarms = naive = mutants = found = early = 0
    parser = tree_sitter.Parser(language_of(language))
    for function in good:
        for end in rng.sample(range(1, len(function)), min(20, len(function) - 1)):
            prefixes += 1
            alarms += not checker.viable(function[:end])
            naive += parser.parse(function[:end].encode()).root_node.has_error
        solid = [x for x in lexemes(function, language) if x.kind in ("bracket", "operator", "word", "string")]
        for lexeme in rng.sample(solid, min(3, len(solid))):
            verdict = checker.check(function[: lexeme.start] + function[lexeme.end :])
            mutants += 1
            found += verdict.kind != "ok"
            early += verdict.kind == "error"
    longest = max(good, key=len)
    pieces = pieces_of(tokenizer, longest)
    result: dict[str, Any] = {
        "functions": len(functions), "called_broken": len(functions) - len(good), "prefixes": prefixes,
        "false_alarms": alarms, "false_alarms_of_has_error": round(naive / prefixes, 4), "mutants": mutants,
        "found": round(found / mutants, 4), "found_with_its_place": round(early / mutants, 4),
        "online_us_per_token": round(best(lambda: follow(language, pieces), 1) / len(pieces) * 1e6, 1),
        "online_tokens": len(pieces),
        "post_hoc_us_per_token": round(best(lambda: checker.check(longest), 3) / len(pieces) * 1e6, 2),
    }  # fmt: skip
    if language == "c":
        broken = [row["sourceText"] for row in rows("repair/tracer_c_test.jsonl.gz")][: 10 * count : 10]
        found = sum(checker.check(program).kind != "ok" for program in broken)
        result["tracer_programs_with_a_compile_error"] = {
            "programs": len(broken),
            "found": round(found / len(broken), 4),
        }
    return result


def syncode(tokenizer: Any, budget: float) -> dict[str, Any] | None:
    """Microseconds per token of SynCode's incremental Python parser on the same programs."""
    interpreter = os.environ.get("SYNCODE_PYTHON")
    if not interpreter:
        return None
    chosen = {lines: program for lines, program in programs(0).items() if lines <= SYNCODE_LINES}
    work = {str(lines): (pieces_of(tokenizer, program), budget) for lines, program in chosen.items()}
    done = subprocess.run(
        [interpreter, "-c", SYNCODE], input=json.dumps(work), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"SynCode failed: {done.stderr[-2000:]}")
    version = "import importlib.metadata as m; print(m.version('syncode'))"
    shown = subprocess.run([interpreter, "-c", version], capture_output=True, text=True, check=True).stdout.strip()
    return {"version": shown, "lines": json.loads(done.stdout[done.stdout.index("{") :])}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", type=int, default=500, help="standard-library functions for false alarms")
    parser.add_argument("--others", type=int, default=60, help="functions of each other language")
    parser.add_argument("--seeds", type=int, default=5, help="programs of each length")
    parser.add_argument("--syncode_budget", type=float, default=6.0, help="seconds of SynCode at each length")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/syntax.json")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(resources.files("lightning_dterm") / "assets" / "quickstart"))
    result: dict[str, Any] = {**provenance.measured(), "load": round(os.getloadavg()[0], 2)}
    result["python_us_per_token_by_lines"] = cost(tokenizer, options.seeds, repeats=3)
    result["syncode_us_per_token_by_lines"] = syncode(tokenizer, options.syncode_budget)
    result["python"] = false_alarms_python(options.functions)
    if shared_functions("java", 1):
        result["other_languages"] = {name: others(name, options.others, tokenizer) for name in LANGUAGES}
    provenance.write(options.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
