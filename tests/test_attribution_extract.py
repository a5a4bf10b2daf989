from __future__ import annotations

import re
import textwrap
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lightning_dterm.attribution.extract import extract_code

FENCE = "```"
DOCSTRING = '''def f(x):
    """Doubles.

    ```
    f(1)
    ```
    """
    return 2 * x
'''
LISTED = DOCSTRING.replace("    ```", "    - so:\n      ```", 1)
MIXED = "def f():\n    '''Not \"\"\".\n\n    ```\n    f()\n    ```\n    '''\n"
F = "def f():\n    return 1\n"
FENCED = f"{FENCE}python\n{F}{FENCE}\nend\n"
SPLIT = 'def f(s):\n    return s.split("</think>")[1]\n'


def code(text: str, language: str = "python") -> list[str]:
    return [text[start:end] for start, end in extract_code(text, language)]


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("x = 1\n", "python", ["x = 1\n"]),
        ("    return x", "python", ["    return x"]),
        ("", "python", []),
        (" \n\t", "python", []),
        ("Sure:\n```python\nx = 1\n```\nDone.", "python", ["x = 1\n"]),
        ("```\nx = 1\n```", "python", ["x = 1\n"]),
        ("```py\nx = 1", "python", ["x = 1"]),  # unclosed
        ("```python\nx = 1\n```\nand\n```Python3\ny = 2\n```", "python", ["x = 1\n", "y = 2\n"]),
        ("```bash\npip\n```\n```python\nx = 1\n```", "python", ["x = 1\n"]),  # other tags lose
        ("```bash\npip\n```\n```\nx = 1\n```", "python", ["x = 1\n"]),
        ("```java\nx = 1;\n```", "python", ["x = 1;\n"]),  # only wrong tags: all blocks
        ("```java\na\n```\n```c\nb\n```", "python", ["a\n", "b\n"]),
        ("```c#\nint x;\n```\n```cs\nint y;\n```", "csharp", ["int x;\n", "int y;\n"]),
        ("~~~~{.python}\na\n```\nb\n~~~~\n", "python", ["a\n```\nb\n"]),  # another fence inside
        ("````\n```\nx\n```\n````", "python", ["```\nx\n```\n"]),  # a longer fence holds shorter ones
        ("  1 ```python\nx", "python", ["  1 ```python\nx"]),  # not at the start of a line: no fence
        ("   ```python\r\nx = 1\r\n   ```\r\nbye", "python", ["x = 1\r\n"]),
        ("- so:\n  ```python\n  if x:\n      y\n\n z\n  ```\n", "python", ["if x:\n", "    y\n\n", "z\n"]),  # in a list
        ("\t```\n\tx\n\t\ty\nz", "python", ["x\n", "\ty\nz"]),  # indented by a tab, unclosed
        ("  ```\n <think>no</think> x\n  ```", "python", [" x\n"]),
        ("```python\n```", "python", []),  # an empty program, not bare code
        ("```python", "python", []),
        ("```x = 1```", "python", ["```x = 1```"]),  # inline code spans are no fence
        ("<think>\n```python\nwrong\n```\n</think>\n```python\nx\n```", "python", ["x\n"]),
        ("I wonder.</think>x = 1", "python", ["x = 1"]),  # the chat template opened it
        ("x = 1\n<think>unclosed y = 2", "python", ["x = 1\n"]),
        ("a<think>1</think>b<think>2</think>", "python", ["a", "b"]),
        ("a<think>1<think>2</think>b", "python", ["a", "b"]),
        ("<think>only thought</think>\n", "python", []),
        ("<think>hm</think>```python\nx\n```", "python", ["x\n"]),
        # a fence in a docstring closes no block and opens none
        ("```python\n" + DOCSTRING + "```\n", "python", [DOCSTRING]),
        (DOCSTRING, "python", [DOCSTRING]),
        (DOCSTRING.partition("\n")[2], "python", [DOCSTRING.partition("\n")[2]]),  # a body, as for HumanEval
        (LISTED, "python", [LISTED]),
        ("- a\n  ```python\n" + textwrap.indent(DOCSTRING, "  ") + "  ```\n", "python", re.findall(".*\n+", DOCSTRING)),
        ("1. Do:\n\n    ```python\n    x = 1\n    ```\n", "python", ["x = 1\n"]),  # in a list it may
        ("- a\n  - b\n    ```\n    x\n    ```\n", "python", ["x\n"]),
        ("```python\nx = 1\n   ```\nbye", "python", ["x = 1\n"]),
        # a closing fence as far in as the code
        ("```python\n" + F + "    ```\n", "python", [F]),
        ("Here:\n```python\n" + F + "    ```\nThis returns 1.\n", "python", [F]),
        ("```python\n" + F + "\t```\nor\n```python\ny = 2\n```\nSo.", "python", [F, "y = 2\n"]),
        ("````python\n" + F + "    ```\n", "python", [F + "    ```\n"]),  # too short
        ("```python\n" + DOCSTRING + "    ```\nIt doubles.\n", "python", [DOCSTRING]),
        ("```python\n" + DOCSTRING, "python", [DOCSTRING]),  # not finished, no fence but the docstring's
        ("```python\n" + MIXED + "```\nBye\n", "python", [MIXED]),
        ("````markdown\n- a\n    ```python\n    x\n    ```\n````\nBye", "python", ["x\n"]),
        # an opening fence as far in as code, outside of docstrings
        ("Here is it.\n\n" + textwrap.indent(FENCED, " " * 4), "python", ["def f():\n", "    return 1\n"]),
        ('Use """Doc.""":\n\n\t```py\n\tx\n\t```\nend', "python", ["x\n"]),
        ("```python\n'''\n```\nor\n    ```\n    x\n    ```\n", "klingon", ["x\n"]),  # open no longer
        # behind and before tags of an answer
        ("<answer>```python\nx = 1\n```</answer>", "python", ["x = 1\n"]),
        ("<a>\n```python\nx = 1\n``` </code></a>\nSo ```x```", "python", ["x = 1\n"]),
        ("```python\nx = '<a>'\n``` a</a>\n", "python", ["x = '<a>'\n``` a</a>\n"]),
        # behind the block that has the tag: only what defines something
        ("```python\nimport math\n```\n```\n" + F + "```\n", "python", ["import math\n", F]),
        ("```python\nx = 1\n```\n  ```\n  y = 2\n  z\n  ```\n", "python", ["x = 1\n", "y = 2\n", "z\n"]),
        ("```python\nx = 1\n```\n```\nSum: 5\n```\n```\nprint(x)\n```\n", "python", ["x = 1\n"]),
        ("```python\nx = 1\n```\n```\nimport the result\n```\n", "python", ["x = 1\n"]),
        ("```python\nx = 1\n```\n```\ny = '\\d'\n```\n", "python", ["x = 1\n", "y = '\\d'\n"]),
        ("```python\nx = 1\n```\n```\ny = " + "(" * 5000 + "\n```\n", "python", ["x = 1\n"]),
        ("```python\nx = 1\n```\n```\ny = '\0'\n```\n", "python", ["x = 1\n"]),
        ("```c\nint x;\n```\n```\ny = 2\n```\n", "c", ["int x;\n"]),
        # what follows the block that has the tag is its output
        ("```python\nx = 1\n```\nOutput:\n```\n1\n```\n", "python", ["x = 1\n"]),
        ("```\nx = 1\n```\n```python\ny = 2\n```\n```\n3\n```\n", "python", ["x = 1\n", "y = 2\n"]),
        ("```Python3.11\nx=1\n```\n```bash\nls\n```", "python", ["x=1\n"]),
        ("```py3\nx=1\n```\n```sh\nls\n```", "python", ["x=1\n"]),
        ("```c++17\nx\n```\n```c99\ny\n```", "cpp", ["x\n"]),
        # behind prose, where it is closed
        ("Here: ```python\nx = 1\n```\n", "python", ["x = 1\n"]),
        ("Here: ```python\nx = 1\n```\nor ```python\ny = 2\n", "python", ["x = 1\n"]),
        ("Use `x`: ```python\nx = 1\n```\n", "python", ["x = 1\n"]),
        ("Use ``x`: ```python\nx = 1\n```\n", "python", []),  # which of them is the code?
        ("s = 'a ```python'\nt = 1\n", "python", ["s = 'a ```python'\nt = 1\n"]),
        ("s = 1  # ```python\nt = 1\n# ```\n", "python", ["s = 1  # ```python\nt = 1\n# ```\n"]),
        # tags that a program handles
        (SPLIT, "python", [SPLIT]),
        ("<think>hm</think>x = '<think>'\ny = 2\n", "python", ["x = '<think>'\ny = 2\n"]),
        ('x = "<think>a</think>"\n', "python", ['x = "<think>a</think>"\n']),
        ('the tag "<think>" and "</think>" then</think>x = 1', "python", ["x = 1"]),
        ('he said "ok"</think>"""Doc."""', "python", ['"""Doc."""']),
        ("<think>\nI'll return 'x'</think> Here's it:\n```python\nx\n```", "python", ["x\n"]),
        ("<think>\njust like the users'</think> Here's it:\n```python\nx\n```", "python", ["x\n"]),
        ("I'll return 'x'</think> Here's it:\n```python\nx\n```", "python", ["x\n"]),
        ("just like the users'</think> Here's it:\n```python\nx\n```", "python", ["x\n"]),
        ("<think>\nI don't say (\"x\")</think>'Doc'\n", "python", ["'Doc'\n"]),
        ("I don't say x</think>'Doc'\n", "python", ["'Doc'\n"]),
        ('<think>the tag "</think>" ends\n```\ny\n```\n</think>\n```\nx\n```', "python", ["x\n"]),
        ("x = t.split(f'{a}</think>')\n", "python", ["x = t.split(f'{a}</think>')\n"]),
        ("x = t.split(rb'</think>')\n", "python", ["x = t.split(rb'</think>')\n"]),
        ("x = t + '</think>\\n'\n", "python", ["x = t + '</think>\\n'\n"]),
        # a document around the block
        ("````markdown\n```python\nx=1\n```\n````", "python", ["x=1\n"]),
        ("````md\nHi\n```python\nx=1\n```\nOut\n```\n1\n```\n````\n", "python", ["x=1\n"]),
        ("```markdown\nprose\n```", "python", ["prose\n"]),
        ("  Adds one. \n", "text", ["Adds one."]),
        ("```\nprose\n```", "text", ["```\nprose\n```"]),
        ("<think>hm</think> Adds one.", "text", ["Adds one."]),
        ("\n \n", "text", []),
    ],
)
def test_cases(text: str, language: str, expected: list[str]) -> None:
    assert code(text, language) == expected


PIECES = st.sampled_from(
    ["```", "~~~", "````", "python", "java", "\n", "\n", " ", "x = 1", "<think>", "</think>", "é😀", "\r", "`"]
)


@settings(max_examples=1000, deadline=None)
@given(text=st.lists(PIECES, max_size=24).map("".join), language=st.sampled_from(["python", "java", "text", "klingon"]))
def test_spans_are_ascending_disjoint_non_empty_and_deterministic(text: str, language: str) -> None:
    spans = extract_code(text, language)
    position = 0
    for start, end in spans:
        assert position <= start < end <= len(text)
        position = end
        assert "<think>" not in text[start:end]
    assert spans == extract_code(text, language)


MORE_PIECES = st.sampled_from(
    ["```", "````", "```python", "````markdown", "Here: ```python", "\n", "\n", "    ", "  ", "- a", "x = 1", "<think>",
     "</think>", "é😀", "\r", "\t", '"', "'"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(text=st.lists(MORE_PIECES, max_size=30).map("".join), language=st.sampled_from(["python", "java", "markdown"]))
def test_spans_lie_within_any_text(text: str, language: str) -> None:
    position = 0
    for start, end in extract_code(text, language):
        assert position <= start < end <= len(text)
        position = end


@given(
    body=st.text(st.characters(exclude_characters="`~<\r"), min_size=1, max_size=80),
    prose=st.sampled_from(["", "Hi\n"]),
)
def test_fenced_code_comes_back_whole(body: str, prose: str) -> None:
    expected = [body + "\n"] if body.strip() else []
    assert code(f"{prose}{FENCE}python\n{body}\n{FENCE}\nbye") == expected


LINES = st.lists(
    st.sampled_from(
        ["```", "````", "~~~", "~~~~", "```python", "~~~ java", "   ```py", "  ```", " ~~~", "x = 1", "   y", " z", "",
         "    deep", "``` not `a fence", "`inline`", "~~"]
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(lines=LINES)
def test_fenced_blocks_are_those_of_a_commonmark_parser(lines: list[str]) -> None:
    """Against markdown-it-py, an independent parser: the insides of all fenced blocks, indentation removed."""
    text = "Hi.\n\n" + "\n".join(lines)
    tokens = MarkdownIt("commonmark").parse(text)
    assume(all(token.type != "code_block" for token in tokens))  # code by indentation alone is nothing to us
    fences = [token for token in tokens if token.type == "fence"]
    assume(fences)
    filled = [token for token in fences if token.content]
    chosen = [token for token in filled if not token.info.strip()] or filled
    found = "".join(code(text, "klingon"))  # one tag is as wrong as the other; the empty one is right
    assert found.rstrip("\n") == "".join(t.content for t in chosen if t.content.strip()).rstrip("\n")


def test_many_blocks_and_thoughts_are_linear() -> None:
    start = time.process_time()
    extract_code("<think>a</think>\n ```\n x\n ```\n" * 12_000, "python")
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "unit",
    [
        "<think>",
        "</think>",
        "```\n",
        "``` ",
        "`",
        " ",
        "~~~a\n",
        "\n```" + " " * 50,
        '"<think>',
        "- a\n    ",
        "a ```python\n",
        "````md\n",
        "\"\"\"'''\n    ```\n",
        '```"</think>',
        "```py\nx\n    ```\n```\ny = 2\n```\n",
        "```</a></a",
        "```" + "</a>" * 50 + "\n",
    ],
)
def test_hostile_repetition_is_linear(unit: str) -> None:
    start = time.process_time()
    extract_code(unit * (400_000 // len(unit)), "python")
    assert time.process_time() - start < 3
