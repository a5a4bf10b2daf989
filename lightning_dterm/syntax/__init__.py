"""Grammar flags per token: can what was written so far still become a program?"""

from lightning_dterm.syntax.base import Checker, Session, Verdict, token_flags
from lightning_dterm.syntax.checkers import checker_for, supports
from lightning_dterm.syntax.processor import SyntaxLogitsProcessor
from lightning_dterm.syntax.treesitter import GrammarError, TreeSitterChecker
from lightning_dterm.syntax.viability import PythonChecker, SyntaxSelfTestError

__all__ = [
    "Checker", "GrammarError", "PythonChecker", "Session", "SyntaxLogitsProcessor", "SyntaxSelfTestError",
    "TreeSitterChecker", "Verdict", "checker_for", "supports", "token_flags",
]  # fmt: skip
