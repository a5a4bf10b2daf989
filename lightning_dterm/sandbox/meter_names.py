"""What a metered program may have of the standard library, and what its own names may be. Tables and pure functions.

An allow-list: a function that reads attributes whose names are data, evaluates text or makes code would be a way out of
the meter, and every version of Python brings new ones.
"""

from __future__ import annotations

import builtins
import types


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ANY = frozenset({"*"})  # functions of numbers and iterators only
IMPORTABLE: dict[str, frozenset[str]] = {
    "__future__": _ANY, "math": _ANY, "cmath": _ANY, "itertools": _ANY, "collections.abc": _ANY, "numbers": _ANY,
    "bisect": _ANY,
    "abc": _words("ABC ABCMeta abstractmethod abstractproperty abstractclassmethod abstractstaticmethod"),
    "array": _words("array typecodes"),
    "collections": _words("Counter OrderedDict defaultdict deque namedtuple"),
    "copy": _words("copy deepcopy"),
    "dataclasses": _words("dataclass field fields is_dataclass InitVar KW_ONLY MISSING FrozenInstanceError"),
    "datetime": _words("date datetime time timedelta timezone tzinfo MINYEAR MAXYEAR UTC"),
    "decimal": _words("""
        Decimal Context getcontext setcontext localcontext DecimalException InvalidOperation DivisionByZero Inexact
        Overflow Underflow Rounded ROUND_HALF_UP ROUND_HALF_DOWN ROUND_HALF_EVEN ROUND_UP ROUND_DOWN ROUND_CEILING
        ROUND_FLOOR ROUND_05UP MAX_PREC MAX_EMAX MIN_EMIN
    """),
    "enum": _words("Enum IntEnum StrEnum Flag IntFlag auto unique"),
    "fractions": _words("Fraction gcd"),
    "functools": _words("cache cached_property cmp_to_key lru_cache partial reduce total_ordering wraps"),
    "hashlib": _words("md5 sha1 sha224 sha256 sha384 sha512 sha3_256 sha3_512 blake2b blake2s"),
    "heapq": _words("heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest"),
    "json": _words("dumps loads JSONDecodeError"),
    "operator": _words("""
        abs add and_ concat contains countOf delitem eq floordiv ge getitem gt iadd iand iconcat ifloordiv ilshift
        imatmul imod imul index indexOf inv invert ior ipow irshift is_ is_not isub itemgetter itruediv ixor le
        length_hint lshift lt matmul mod mul ne neg not_ or_ pos pow rshift setitem sub truediv truth xor
    """),
    "random": _words("""
        Random betavariate choice choices expovariate gammavariate gauss getrandbits getstate lognormvariate
        normalvariate paretovariate randbytes randint random randrange sample seed setstate shuffle triangular uniform
        vonmisesvariate weibullvariate
    """),
    "re": _words("""
        compile escape findall finditer fullmatch match search split sub subn purge error Match Pattern RegexFlag
        A ASCII I IGNORECASE L LOCALE M MULTILINE S DOTALL U UNICODE X VERBOSE NOFLAG
    """),
    "statistics": _words("""
        mean fmean geometric_mean harmonic_mean median median_low median_high median_grouped mode multimode quantiles
        pstdev pvariance stdev variance covariance correlation linear_regression NormalDist StatisticsError
    """),
    "string": _words("""
        ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits octdigits printable punctuation
        whitespace
    """),
    "struct": _words("Struct calcsize error iter_unpack pack pack_into unpack unpack_from"),
    "sys": _words("""
        maxsize float_info int_info hash_info version_info byteorder getsizeof intern getrecursionlimit
        setrecursionlimit stdin stdout stderr set_int_max_str_digits
    """),
    "textwrap": _words("dedent fill indent shorten wrap"),
    "time": _words("time time_ns perf_counter perf_counter_ns monotonic monotonic_ns process_time sleep strftime"),
    "typing": _words("""
        Any AnyStr Annotated AsyncGenerator AsyncIterable AsyncIterator Awaitable BinaryIO ByteString Callable
        ClassVar Collection Concatenate Container Coroutine Counter DefaultDict Deque Dict Final FrozenSet Generator
        Generic Hashable IO ItemsView Iterable Iterator KeysView List Literal LiteralString Mapping MappingView Match
        MutableMapping MutableSequence MutableSet NamedTuple Never NewType NoReturn Optional OrderedDict ParamSpec
        Pattern Protocol Reversible Self Sequence Set Sized SupportsAbs SupportsFloat SupportsIndex SupportsInt
        SupportsRound Text TextIO Tuple Type TypeAlias TypeGuard TypeVar TypedDict Union Unpack TYPE_CHECKING ValuesView
        cast final overload
    """),
}  # fmt: skip
"""Modules that a metered program may import, with what it may have of each (``*``: every public name)."""

BUILTINS = _words("""
    abs all any ascii bin bool bytearray bytes callable chr classmethod complex delattr dict divmod enumerate filter
    float format frozenset getattr hasattr hash hex id int isinstance issubclass iter len list map max min next object
    oct ord pow print property range repr reversed round set setattr sorted staticmethod str sum super tuple type zip
    aiter anext None True False NotImplemented Ellipsis __debug__
""") | {name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)}
"""What a metered program may have of the built-ins; ``slice`` is missing since slices are charged where written."""

PUBLIC_DUNDERS = frozenset(
    f"__{name}__"
    for name in _words("""
    init new len eq ne lt le gt ge hash bool repr str format iter next contains getitem setitem delitem missing
    add sub mul truediv floordiv mod divmod pow lshift rshift and or xor neg pos abs invert radd rsub rmul
    rtruediv rfloordiv rmod rpow rand ror rxor rlshift rrshift iadd isub imul itruediv ifloordiv imod ior iand ixor
    ilshift irshift ipow matmul rmatmul enter exit name doc
    index int float complex round trunc floor ceil reversed copy deepcopy post_init class length_hint init_subclass
    slots bytes
""")
) | {"_asdict", "_replace", "_fields", "_make"}
"""Special attributes that lead nowhere, and the public ones of named tuples."""

_DEFINED_ALONE = """
    __call__ __get__ __set__ __delete__ __set_name__ __getattr__ __setattr__ __delattr__ __class_getitem__
    __aiter__ __anext__
"""  # a program may define them; read from others' objects they would hide what is called
DEFINABLE = (PUBLIC_DUNDERS | _words(_DEFINED_ALONE)) - {
    "__class__",
    "__name__",
}
"""Special names that a program may define or use as names; ``__reduce__`` and the like make ``copy`` set attributes."""

READABLE_NAMES = DEFINABLE | _words("__name__ __debug__ __file__ __all__ __author__ __version__")

FORMATS = frozenset({"format", "format_map"})
"""Methods of texts that read attributes whose names are data: checked in every call (see ``meter_reach``)."""

NEVER = _words("""
    gi_frame gi_code gi_yieldfrom gi_running gi_suspended cr_frame cr_code cr_await cr_origin cr_running ag_frame
    ag_code ag_await tb_frame tb_next tb_lasti tb_lineno f_back f_builtins f_code f_globals f_lasti f_lineno f_locals
    f_trace f_trace_lines f_trace_opcodes f_generator co_argcount co_code co_consts co_names co_varnames co_freevars
    co_cellvars co_flags co_positions co_lines co_linetable co_exceptiontable replace_code func_globals func_code
    func_closure _convert_ _create_ _evaluate _getframe
""")
"""Attributes that lead out of the meter and are refused even where the program sets one of that name itself."""


def public_copy(module: types.ModuleType, allowed: frozenset[str]) -> types.ModuleType:
    """A module with the allowed functions and values of another, and no way to further modules."""
    copy = types.ModuleType(module.__name__)
    for name, value in vars(module).items():
        wanted = not name.startswith("_") if allowed is _ANY else name in allowed
        if wanted and not isinstance(value, types.ModuleType):
            setattr(copy, name, value)
    return copy
