"""Prompts, descriptions and summaries of tasks. An actor is trained on these formats: change them with care."""

from __future__ import annotations

import itertools

from lightning_dterm.data.microcode.spec import Draw, Segments

MARKER = "### Python\n"
SUMMARY_MARKER = "### Summary\n"
MAX_ACCEPTED = 64

INTENTS = {
    "synthesis": (
        "Write a Python function that returns {t}.",
        "Implement a Python function returning {t}.",
        "Synthesize code in Python: return {t}.",
    ),
    "completion": (
        "Complete the Python function, which returns {t}.",
        "Finish this partial Python code so that it returns {t}.",
        "Fill in the rest of a function returning {t}.",
    ),
    "repair": (
        "Fix the bug in a Python function that should return {t}.",
        "Repair the faulty Python code; it must return {t}.",
        "Find and correct the error. The function should return {t}.",
    ),
    "translation": (
        "Translate a JavaScript function to Python; it returns {t}.",
        "Port JavaScript code to Python. The function returns {t}.",
        "Convert the JavaScript program into equivalent Python returning {t}.",
    ),
    "summarization": (
        "Summarize in one line of English what the Python function {n} does.",
        "Describe the Python function {n} in a short sentence.",
        "Explain in one sentence what {n} returns.",
    ),
    "optimization": (
        "Make the slow Python function faster; it returns {t}.",
        "Optimize this Python code without changing that it returns {t}.",
        "Speed up a function that returns {t}.",
    ),
}
_WRITE = ("Write", "Implement", "Define")
_COMPLETE = ("Complete", "Finish")
_FIX = ("Fix", "Repair")
_TRANSLATE = ("Translate to Python:", "Convert to Python:")
_SUMMARIZE = ("Summarize:", "Describe:")
_OPTIMIZE = ("Make it faster:", "Optimize:")


def word(text: Segments, draw: Draw) -> str:
    """One random wording."""
    return "".join([draw.pick(slot) for slot in text])


def summary(text: Segments) -> str:
    """The canonical one-line summary."""
    return "Return " + "".join([slot[0] for slot in text]) + "."


def accepted_summaries(text: Segments) -> tuple[str, ...]:
    """Every wording of the summary, canonical first; where there are more than 64, later slots keep one wording."""
    slots: list[tuple[str, ...]] = []
    total = 1
    for slot in text:
        total *= len(slot)
        slots.append(slot if total <= MAX_ACCEPTED else slot[:1])
        if total > MAX_ACCEPTED:
            total //= len(slot)
    return tuple(["Return " + "".join(words) + "." for words in itertools.product(*slots)])


def describe(task_type: str, text: str, name: str, draw: Draw) -> str:
    """What the task encoder reads."""
    return draw.pick(INTENTS[task_type]).format(t=text, n=name)


def synthesis_prompt(signature: str, text: str, draw: Draw) -> str:
    """Instruction, signature, description, marker."""
    return f"{draw.pick(_WRITE)} {signature}: return {text}.\n{MARKER}"


def completion_prompt(signature: str, text: str, prefix: str, draw: Draw) -> str:
    """Instruction, description, marker and the code so far, which the completion continues."""
    return f"{draw.pick(_COMPLETE)} {signature}: return {text}.\n{MARKER}{prefix}"


def repair_prompt(signature: str, text: str, faulty: str, draw: Draw) -> str:
    """Instruction, description, the faulty program, marker."""
    return f"{draw.pick(_FIX)} {signature}: return {text}.\n{faulty}{MARKER}"


def translation_prompt(javascript: str, draw: Draw) -> str:
    """Instruction, JavaScript, marker."""
    return f"{draw.pick(_TRANSLATE)}\n{javascript}{MARKER}"


def summarization_prompt(python: str, draw: Draw) -> str:
    """Instruction, Python, marker."""
    return f"{draw.pick(_SUMMARIZE)}\n{python}{SUMMARY_MARKER}"


def optimization_prompt(slow: str, draw: Draw) -> str:
    """Instruction, the slow program, marker."""
    return f"{draw.pick(_OPTIMIZE)}\n{slow}{MARKER}"
