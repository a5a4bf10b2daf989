"""Reserved words per language, from the language specifications: what CodeBLEU's weighted n-gram match weighs more."""

from __future__ import annotations

import keyword
from collections.abc import Mapping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEYWORDS: Mapping[str, frozenset[str]] = {
    "python": frozenset(keyword.kwlist),
    "java": _words(
        """
        abstract assert boolean break byte case catch char class const continue default do double else enum
        extends false final finally float for goto if implements import instanceof int interface long native new
        null package private protected public return short static strictfp super switch synchronized this throw
        throws transient true try void volatile while
        """
    ),
    "c": _words(
        """
        auto break case char const continue default do double else enum extern float for goto if inline int long
        register restrict return short signed sizeof static struct switch typedef union unsigned void volatile
        while
        """
    ),
    "cpp": _words(
        """
        alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t
        class co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue
        decltype default delete do double dynamic_cast else enum explicit export extern false float for friend
        goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
        protected public register reinterpret_cast requires return short signed sizeof static static_assert
        static_cast struct switch template this thread_local throw true try typedef typeid typename union
        unsigned using virtual void volatile wchar_t while xor xor_eq
        """
    ),
    "csharp": _words(
        """
        abstract as base bool break byte case catch char checked class const continue decimal default delegate
        do double else enum event explicit extern false finally fixed float for foreach goto if implicit in int
        interface internal is lock long namespace new null object operator out override params private protected
        public readonly ref return sbyte sealed short sizeof stackalloc static string struct switch this throw
        true try typeof uint ulong unchecked unsafe ushort using virtual void volatile while
        """
    ),
    "javascript": _words(
        """
        await break case catch class const continue debugger default delete do else enum export extends false
        finally for function if implements import in instanceof interface let new null package private protected
        public return static super switch this throw true try typeof var void while with yield
        """
    ),
    "go": _words(
        """
        break case chan const continue default defer else fallthrough for func go goto if import interface map
        package range return select struct switch type var
        """
    ),
    "php": _words(
        """
        __halt_compiler abstract and array as break callable case catch class clone const continue declare
        default die do echo else elseif empty enddeclare endfor endforeach endif endswitch endwhile eval exit
        extends final finally fn for foreach function global goto if implements include include_once instanceof
        insteadof interface isset list match namespace new or print private protected public readonly require
        require_once return static switch throw trait try unset use var while xor yield
        """
    ),
}
