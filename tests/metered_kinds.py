"""Kinds of work that Python does in C (or in its library) at a program's bidding, each once, at any size.

``SETUP`` makes things of ``n`` elements; each statement of ``KINDS`` goes over one of them, or copies, compares, hashes
or shows it, and does work that grows at least linearly with ``n``.
"""

# ruff: noqa: E501 - programs in a table read better on one line

from __future__ import annotations

SETUP = """
import array, bisect, collections, copy, functools, hashlib, heapq, itertools, json, math, operator, random, re
import statistics, string, struct, textwrap
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import NamedTuple
@dataclass
class Box:
    items: list
@dataclass(order=True, frozen=True)
class Row:
    items: tuple
class Pair(NamedTuple):
    first: tuple
    second: int = 0
class Plain: pass
class Slotted:
    __slots__ = ("items",)
class MyList(list): pass
class MyDict(dict): pass
class MyStr(str): pass
class Holder:
    def __init__(self, items): self.items = items
    def __iter__(self): return iter(self.items)
    def __len__(self): return len(self.items)
class Meta:
    def __init_subclass__(cls, items=(), **k): cls.made = list(items)
def none(x): return False
once = functools.lru_cache(None)(none)
def args(*a, **k): return None
def spread(a, *b): return None
def f(n):
    xs = list(range(n)); ys = list(range(n)); zs = [0] * n
    t = tuple(xs); t2 = tuple(ys); s = set(xs); s2 = set(ys); far = {-1 - x for x in xs}; fs = frozenset(xs); fs2 = frozenset(ys)
    d = dict(zip(xs, ys)); d2 = dict(d); kw = {"k" + str(x): x for x in xs}; od = OrderedDict(d); od2 = OrderedDict(d); c = Counter(xs); c2 = Counter(xs)
    text = "ab" * (n // 2); same = "".join(list(text)); line = "word " * (n // 5); b = b"ab" * (n // 2); ba = bytearray(b); ba2 = bytearray(b); ar = array.array("q", xs); ar2 = array.array("q", xs); dq = deque(xs); dq2 = deque(xs)
    rows = [[x] for x in xs]; rows2 = [[x] for x in xs]; words = [str(x) for x in xs]; floats = [float(x) for x in xs]; empties = [[] for x in xs]
    box, box2 = Box(xs), Box(ys); row, row2 = Row(t), Row(t2); pair, pair2 = Pair(t), Pair(t2); mine, mine2 = MyList(xs), MyList(ys); mydict = MyDict(d); mystr = MyStr(text)
    big = (1 << (64 * n)) - 1; big2 = (1 << (64 * n)) - 1; holder = Holder(xs); js = json.dumps(xs); fr = [Fraction(x, 7) for x in xs]; de = [Decimal(x) for x in xs]; digits = "7" * n
    nested = [t, [t]]; heap = list(xs); compiled = re.compile("a+c"); bcompiled = re.compile(b"a+c"); mutable = array.array('q', xs)
    boxes = [Box([x]) for x in xs]; boxes2 = [Box([x]) for x in xs]; pt = [Pair((x,)) for x in xs]; rng = range(n); table = str.maketrans({"a": "b"})
    heap2, mut = list(heap), list(xs)
    made = {}
"""

KINDS = {
    "list(list)": "list(xs)", "tuple(list)": "tuple(xs)", "set(list)": "set(xs)", "frozenset(list)": "frozenset(xs)",
    "dict(dict)": "dict(d)", "dict.fromkeys": "dict.fromkeys(xs)", "list(range)": "list(rng)",
    "bytes(list of small)": "bytes(zs)", "bytearray(list of small)": "bytearray(zs)", "bytes(n)": "bytes(n * 64)",
    "array(list)": "array.array('q', xs)", "deque(list)": "deque(xs)", "Counter(list)": "Counter(xs)",
    "Counter(text)": "Counter(text)", "OrderedDict(dict)": "OrderedDict(d)",
    "defaultdict(list, dict)": "defaultdict(list, d)", "list * k": "zs * 4", "text * k": "text * 8",
    "list + list": "xs + ys", "tuple + tuple": "t + t2", "list of a subclass": "list(mine)",
    "subclass from list": "MyList(xs)", "subclass of dict": "MyDict(d)", "subclass of str": "MyStr(text + 'c')",
    "unpacked call": "args(*xs)", "unpacked keywords": "args(**kw)", "unpacked into C": "max(*xs)",
    "unpacked list": "[*xs]", "unpacked set": "{*xs}", "unpacked dict": "{**d}", "starred target": "a, *q = xs",
    "list display of dict view": "[*d.values()]", "slice": "xs[1:]", "slice with step": "xs[::2]",
    "slice of text": "text[1:]", "slice of bytes": "b[1:]", "slice of tuple": "t[1:]", "slice of array": "ar[1:]",
    "slice assigned": "q = []; q[:] = xs", "slice assigned by step": "mut[::2] = xs[::2]",
    "slice deleted": "q = list(xs); del q[1:]", "slice of range, listed": "list(rng[1:])", "in list": "-1 in xs",
    "in tuple": "-1 in t", "in text": "'ba' * 3 + 'c' in text", "in deque": "-1 in dq", "in array": "-1 in ar",
    "in dict values": "-1 in d.values()", "in subclass": "-1 in mine", "in iterator": "-1 in iter(xs)",
    "in map": "-1 in map(abs, xs)", "in zip": "-1 in zip(xs, ys)", "in bytes": "b'bac' in b",
    "in holder": "-1 in holder", "in a range by a float": "0.5 in rng",
    "in itertools.chain": "-1 in itertools.chain(xs)", "in generator": "-1 in (x for x in xs)", "== list": "xs == ys",
    "!= list": "xs != ys", "< list": "xs < ys", "<= tuple": "t <= t2", "== set": "s == s2", "<= set": "s <= s2",
    "== dict": "d == d2", "== deque": "dq == dq2", "== array": "ar == ar2", "== text": "text == same",
    "< text": "text < same", "== bytes": "b == ba", "== Counter": "c == c2", "== OrderedDict": "od == od2",
    "== dataclass": "box == box2", "< dataclass": "row < row2", "== frozen dataclass": "row == row2",
    "hash of a dataclass": "hash(row)", "repr of a dataclass": "repr(box)",
    "list of dataclasses ==": "boxes == boxes2", "dataclass in a set": "{row}", "dataclass as a key": "d.get(row)",
    "dataclass in a list": "box in [box2]", "f-string of a dataclass": "f'{box}'", "str of a dataclass": "str(box)",
    "dataclass twice nested": "Box(box) == Box(box2)", "copy.copy of a dataclass's list": "copy.copy(box.items)",
    "deepcopy of a dataclass": "copy.deepcopy(box)", "index of a dataclass": "[box2].index(box)",
    "count of a dataclass": "[box2].count(box)", "remove of a dataclass": "[box2].remove(box)",
    "max of dataclasses": "max(row, row2)", "sorted dataclasses": "sorted([row, row2])",
    "== NamedTuple": "pair == pair2", "hash of a NamedTuple": "hash(pair)", "repr of a NamedTuple": "repr(pair)",
    "list of NamedTuples ==": "pt == list(pt)[::-1]", "items view ==": "d.items() == d2.items()",
    "keys view &": "d.keys() & s", "keys view |": "d.keys() | s", "keys view -": "d.keys() - far",
    "keys view ^": "d.keys() ^ s", "keys isdisjoint": "d.keys().isdisjoint(far)", "set & set": "s & s2",
    "set | set": "s | s2", "set - set": "s - s2", "set ^ set": "s ^ s2", "set.union": "s.union(xs)",
    "set.issubset": "s.issubset(xs)", "set.issuperset": "s.issuperset(xs)", "set.isdisjoint": "s.isdisjoint(far)",
    "set.update": "s.update(xs)", "set.copy": "s.copy()", "dict.copy": "d.copy()", "dict | dict": "d | d2",
    "dict.update": "d.update(d2)", "set in place": "q = s; q |= s2",
    "set.difference_update": "set().difference_update(xs)", "set.intersection_update": "s.intersection_update(xs)",
    "Counter + Counter": "c + c2", "Counter - Counter": "c - c2", "Counter.update": "c.update(xs)",
    "Counter.subtract": "c.subtract(c2)", "Counter.most_common": "c.most_common()", "Counter.total": "c.total()",
    "Counter.elements": "list(c2.elements())", "frozen hash": "hash(frozenset(xs))", "tuple hash": "hash(t)",
    "tuple as a key": "d.get(t)", "tuple in a set": "t in s", "tuple in a display": "{t}",
    "tuple as item": "d[t] = 1", "tuple in a dict display": "{t: 1}", "nested tuple as a key": "(t, 1) in d",
    "text hash": "hash(text + 'x')", "tuple in a frozen set": "frozenset([t])", "tuple added": "s.add(t)",
    "tuple discarded": "s.discard(t)", "tuple popped": "d.pop(t, None)", "setdefault": "d.setdefault(t, 1)",
    "cached by tuple": "once(t)", "tuple in dict comprehension": "{k: 1 for k in [t]}",
    "tuple in a set comprehension": "{k for k in [t]}", "zip to dict": "dict(zip([t], [1]))",
    "dict.fromkeys(tuples)": "dict.fromkeys([t])", "memo by subscript": "t in d and d[t]",
    "set of tuples": "set([t])", "Counter of tuples": "Counter([t])",
    "defaultdict by tuple": "defaultdict(int)[t] += 1", "get by tuple in map": "list(map(d.get, [t]))",
    "set.add in map": "list(map(s.add, [t]))", "sum": "sum(xs)", "sum of floats": "sum(floats)",
    "sum of lists": "sum(rows, [])", "sum of Fractions": "sum(fr)", "sum of Decimals": "sum(de)", "max": "max(xs)",
    "min": "min(xs)", "any": "any(zs)", "all": "all(floats[1:])", "sorted": "sorted(xs)",
    "sorted by key": "sorted(xs, key=abs)", "sorted rows": "sorted(rows)", "list.sort": "list(xs).sort()",
    "reverse": "mut.reverse()", "reversed": "list(reversed(xs))", "min of Fractions": "min(fr)",
    "sorted Fractions": "sorted(fr)", "max of Decimals": "max(de)", "math.prod": "math.prod(floats)",
    "math.fsum": "math.fsum(floats)", "math.dist": "math.dist(floats, floats)", "math.hypot": "math.hypot(*floats)",
    "math.gcd": "math.gcd(*xs)", "math.lcm": "math.lcm(*zs)", "list.count": "xs.count(-1)",
    "list.index": "xs.index(n - 1)", "list.copy": "xs.copy()", "list.extend": "q = []; q.extend(xs)",
    "list += list": "q = []; q += xs", "list.insert": "mut.insert(0, mut.pop())",
    "list.pop(0)": "mut.append(mut.pop(0))", "del list[0]": "del mut[0]; mut.append(0)",
    "list.remove": "mut.remove(mut[-1]); mut.append(-5)", "tuple.count": "t.count(-1)",
    "tuple.index": "t.index(n - 1)", "deque.count": "dq.count(-1)", "deque.rotate": "dq.rotate(n // 2)",
    "deque.copy": "dq.copy()", "deque.extend": "deque().extend(xs)", "deque, bounded": "deque(xs, maxlen=1)",
    "deque.index": "dq.index(n - 1)", "deque.remove": "dq2.remove(dq2[-1]); dq2.append(-5)",
    "deque.insert": "dq2.insert(n // 2, 0); dq2.pop()", "deque.reverse": "dq.reverse()", "deque *": "dq * 2",
    "deque +": "dq + dq2", "array.count": "ar.count(-1)", "array.tolist": "ar.tolist()",
    "array.tobytes": "ar.tobytes()", "array.extend": "array.array('q').extend(ar)",
    "array.frombytes": "array.array('b').frombytes(b)", "array.fromlist": "array.array('q').fromlist(xs)",
    "array.byteswap": "ar.byteswap(); ar.byteswap()", "array.reverse": "ar.reverse()",
    "array.insert": "mutable.insert(0, mutable.pop())", "bytes.count": "b.count(b'ba')",
    "bytes.join": "b''.join([b] * 2)", "bytes.split": "b.split(b'b')", "bytes.hex": "b.hex()",
    "bytes.decode": "b.decode()", "bytes.translate": "b.translate(None, b'a')",
    "bytearray.append and copy": "bytes(ba)", "bytearray.reverse": "ba.reverse(); ba.reverse()",
    "bytearray.insert": "ba.insert(0, ba.pop())", "bytearray.pop(0)": "ba.append(ba.pop(0))",
    "bytearray slice assigned": "ba[1:2] = b'c'", "bytearray.find": "ba2.find(b'c')",
    "int.from_bytes": "int.from_bytes(b, 'big')", "int.to_bytes": "big.to_bytes(8 * n, 'big')",
    "str.join": "''.join(words)", "str.join of characters": "','.join(text)", "str.split": "line.split()",
    "str.split by": "text.split('b')", "str.rsplit": "line.rsplit()", "str.splitlines": "line.splitlines()",
    "str.replace": "text.replace('a', 'bc')", "str.translate": "text.translate(table)",
    "str.count": "text.count('ba')", "str.find": "text.find('c')", "str.rfind": "text.rfind('c')",
    "str.index": "(text + 'c').index('c')", "str.lower": "text.lower()", "str.upper": "text.upper()",
    "str.title": "text.title()", "str.swapcase": "text.swapcase()", "str.casefold": "text.casefold()",
    "str.capitalize": "text.capitalize()", "str.isalpha": "text.isalpha()", "str.isidentifier": "text.isidentifier()",
    "str.isprintable": "text.isprintable()", "str.isdigit": "digits.isdigit()", "str.isascii": "text.isascii()",
    "str.strip": "text.strip('ab')", "str.lstrip": "(' ' * n).lstrip()", "str.zfill": "'1'.zfill(n * 64)",
    "str.center": "'1'.center(n * 64)", "str.ljust": "'1'.ljust(n * 64)", "str.encode": "text.encode()",
    "str.partition": "text.partition('c')", "str.expandtabs": "text.expandtabs()", "str.format": "'{}'.format(xs)",
    "str.format of text": "'{:>5}'.format(text)", "str.startswith": "text.startswith(same)",
    "str.endswith": "text.endswith(same)", "str.removeprefix": "text.removeprefix('a')", "text + text": "text + same",
    "text in place": "q = ''; q += text", "% of a list": "'%s' % (xs,)", "% of a text": "'%s' % text",
    "% of a dict": "'%(k)s' % {'k': xs}", "f-string of a list": "f'{xs}'", "f-string of a text": "f'{text}'",
    "f-string padded": "f'{1:{n * 64}}'", "f-string repr": "f'{words!r}'", "format padded": "format(1, str(n * 64))",
    "format of text": "format(text, '>5')", "%-padded": "'%*d' % (n * 64, 1)",
    "str.format padded": "'{:{}}'.format(1, n * 64)", "format_map": "'{k}'.format_map({'k': xs})",
    "repr of a list": "repr(xs)", "str of a list": "str(xs)", "str of a dict": "str(d)", "ascii": "ascii(words)",
    "repr of a deque": "repr(dq)", "repr of an array": "repr(ar)", "print": "print(xs)",
    "print unpacked": "print(*xs)", "repr of a Counter": "repr(c)", "repr of an OrderedDict": "repr(od)",
    "str of a Holder's list": "str(holder.items)", "hex of big": "hex(big)", "bin of big": "bin(big)",
    "big + big": "big + big2", "big * small": "big * 3", "big == big": "big == big2", "big >> 1": "big >> 1",
    "big << 1": "big << 1", "-big": "-big", "~big": "~big", "hash(big)": "hash(big)", "big & big": "big & big2",
    "big // small": "big // 7", "bool of big bit_length": "big.bit_length() and big + 1",
    "bit_count": "big.bit_count()", "int of text": "int(digits)", "int of hex": "int(digits, 16)",
    "float of text": "float(digits[:300] + '.' + digits)", "Decimal of text": "Decimal(digits)",
    "Fraction of text": "Fraction(digits)", "map": "list(map(abs, xs))",
    "map, drained by deque": "deque(map(abs, xs), maxlen=0)", "map by a class": "list(map(str, xs))",
    "filter(None)": "list(filter(None, zs))", "filter(C)": "list(filter(far.__contains__, xs))",
    "filter(cached)": "list(filter(once, zs))", "filter(bool)": "list(filter(bool, zs))",
    "filter(class)": "list(filter(Holder([]).items.__contains__, zs))", "zip": "list(zip(xs, ys))",
    "zip drained": "deque(zip(xs, ys), maxlen=0)", "enumerate": "list(enumerate(xs))",
    "unpacked zip": "[*zip(*[xs, ys])]", "zip(*rows)": "list(zip(*rows))",
    "islice skips": "list(itertools.islice(xs, n - 1, n))", "islice steps": "list(itertools.islice(xs, 0, None, n))",
    "islice of a text": "list(itertools.islice(text, n - 1, n))",
    "islice of a dict": "list(itertools.islice(d, n - 1, n))",
    "islice of a deque": "list(itertools.islice(dq, n - 1, n))",
    "islice of count": "next(itertools.islice(itertools.count(), n, None))",
    "islice of repeat": "next(itertools.islice(itertools.repeat(1), n, None))",
    "islice of a cycle": "next(itertools.islice(itertools.cycle('ab'), n, None))",
    "islice of a holder": "list(itertools.islice(holder, n - 1, n))",
    "islice of a range": "next(itertools.islice(rng, n - 1, None))",
    "islice of mine": "next(itertools.islice(mine, n - 1, None))",
    "islice of product": "next(itertools.islice(itertools.product(xs, 'ab'), n, None))",
    "filterfalse(None)": "list(itertools.filterfalse(None, floats[1:]))",
    "filterfalse(cached)": "list(itertools.filterfalse(str, words))", "compress": "list(itertools.compress(xs, zs))",
    "takewhile": "len(list(itertools.takewhile((-1).__lt__, xs)))",
    "dropwhile": "list(itertools.dropwhile((-1).__lt__, xs))",
    "dropwhile(cached)": "list(itertools.dropwhile(str, xs))", "groupby": "len(list(itertools.groupby(zs)))",
    "groupby(cached)": "len(list(itertools.groupby(zs, once)))", "chain": "list(itertools.chain(xs, ys))",
    "chain of empties": "list(itertools.chain.from_iterable(empties))",
    "chain(*empties)": "list(itertools.chain(*empties))",
    "chain.from_iterable": "list(itertools.chain.from_iterable(rows))",
    "accumulate": "list(itertools.accumulate(xs))", "accumulate Fractions": "deque(itertools.accumulate(fr), 0)",
    "accumulate lists": "deque(itertools.accumulate(rows), 0)",
    "accumulate max": "list(itertools.accumulate(xs, max))", "pairwise": "list(itertools.pairwise(xs))",
    "zip_longest": "list(itertools.zip_longest(xs, ys))", "starmap": "list(itertools.starmap(pow, zip(xs, [1] * n)))",
    "tee": "itertools.tee(xs)[0].__next__() or list(itertools.tee(xs)[1])",
    "combinations, made": "itertools.combinations(xs, 2)",
    "combinations of long": "next(itertools.combinations(xs, n - 1))",
    "permutations, made": "itertools.permutations(xs, 2)", "permutations of all": "next(itertools.permutations(xs))",
    "product, made": "itertools.product(xs)", "product repeated": "itertools.product('ab', repeat=n)",
    "product of many": "next(itertools.product(*rows))",
    "combinations_with_replacement, made": "itertools.combinations_with_replacement(xs, 2)",
    "combinations_with_replacement": "list(itertools.combinations_with_replacement(xs, 1))",
    "cycle": "list(zip(itertools.cycle(xs), xs))", "repeat": "list(itertools.repeat(1, n))",
    "iter with a sentinel": "list(iter(iter(xs).__next__, n - 1))", "next(filter)": "next(filter(None, zs), 1)",
    "sum(map)": "sum(map(abs, xs))", "all(map)": "all(map((-1).__lt__, xs))",
    "reduce": "functools.reduce(operator.add, xs)", "reduce(max)": "functools.reduce(max, xs)",
    "cmp_to_key": "sorted(xs, key=functools.cmp_to_key(operator.sub))",
    "partial": "list(map(functools.partial(operator.add, 1), xs))", "partial(sum)": "functools.partial(sum, xs)()",
    "itemgetter": "sorted(rows, key=operator.itemgetter(0))", "operator.countOf": "operator.countOf(xs, -1)",
    "operator.indexOf": "operator.indexOf(xs, n - 1)", "operator.concat": "operator.concat(xs, ys)",
    "operator.contains": "operator.contains(xs, -1)", "operator.eq": "operator.eq(xs, ys)",
    "operator.iconcat": "operator.iconcat([], xs)", "operator.iadd": "operator.iadd([], xs)",
    "operator.setitem": "operator.setitem(d, t, 1)",
    "operator.getitem": "operator.contains(d, t) or operator.setitem(d, t, 0) or operator.getitem(d, t)",
    "heapify": "heapq.heapify(heap2)", "nlargest": "heapq.nlargest(2, xs)", "nsmallest": "heapq.nsmallest(2, xs)",
    "merge": "list(heapq.merge(xs, ys))", "heap popped": "for x in xs: heapq.heappush(heap, heapq.heappop(heap))",
    "insort": "bisect.insort(heap2, -1); heap2.pop()", "heap of rows": "heapq.heapify([(t, 1), (t2, 0)])",
    "bisect by tuple": "bisect.bisect([t, t2], t)", "heappush tuple": "heapq.heappush([(t, 0)], (t2, 1))",
    "heapreplace tuple": "heapq.heapreplace([t, t2], t)", "min of tuples": "min(t, t2)",
    "max of lists": "max([xs, ys])", "sorted of tuples": "sorted([(t, 1), (t2, 0)])",
    "sort of tuples": "[(t, 1), (t2, 0)].sort()", "list in list": "xs in [ys]", "index of list": "[ys].index(xs)",
    "count of tuple": "[t2].count(t)", "set with equal tuples": "{t, t2}",
    "sorted by list key": "sorted([0, 1], key=lambda i: (t, t2)[i])",
    "max by list key": "max(0, 1, key=lambda i: (t, t2)[i])", "nlargest by tuple": "heapq.nlargest(1, [t, t2])",
    "copy.copy": "copy.copy(xs)", "copy of a dict": "copy.copy(d)", "copy of a set": "copy.copy(s)",
    "deepcopy": "copy.deepcopy(rows)", "deepcopy of a dict": "copy.deepcopy(d)",
    "deepcopy of a tuple": "copy.deepcopy(t)", "deepcopy of an instance": "copy.deepcopy(holder)",
    "copy of an instance": "copy.copy(holder).items == ys", "copy of a subclass": "copy.copy(mine)",
    "deepcopy of a subclass": "copy.deepcopy(mine)", "json.dumps": "json.dumps(xs)", "json.loads": "json.loads(js)",
    "dumps of a dict": "json.dumps(kw)", "dumps indented": "json.dumps(xs, indent=1)",
    "hashlib": "hashlib.md5(b * 8).hexdigest()", "hashlib.update": "hashlib.md5().update(b * 8)",
    "struct.pack": "struct.pack(f'{n}b', *zs)", "struct.unpack": "struct.unpack(f'{n}s', b[:n])",
    "struct.iter_unpack": "list(struct.iter_unpack('b', b))", "Struct.pack": "struct.Struct(f'{n}b').pack(*zs)",
    "mean": "statistics.mean(xs)", "fmean": "statistics.fmean(xs)", "median": "statistics.median(xs)",
    "mode": "statistics.mode(xs)", "stdev": "statistics.stdev(floats)", "pvariance": "statistics.pvariance(xs)",
    "quantiles": "statistics.quantiles(xs)", "multimode": "statistics.multimode(xs)",
    "random.shuffle": "random.shuffle(mut)", "random.sample": "random.sample(xs, n // 2)",
    "random.choices": "random.choices(xs, k=n)", "randbytes": "random.randbytes(n * 8)",
    "getrandbits": "random.getrandbits(n * 64)", "choices by weight": "random.choices(xs, weights=xs)",
    "textwrap": "textwrap.wrap(line)", "dedent": "textwrap.dedent(line)", "capwords": "string.capwords(line)",
    "re.findall": "re.findall('a', text)", "re.sub": "re.sub('a', 'b', text)", "re.split": "re.split('b', text)",
    "re.search": "re.search('a+c', text)", "compiled": "compiled.search(text)",
    "re.finditer": "list(re.finditer('a', text))", "re.escape": "re.escape(text)",
    "re on bytes": "bcompiled.search(b)", "re on a bytearray": "bcompiled.search(ba2)",
    "re on an array": "re.search(b'a+c', array.array('b', b))",
    "re.sub by function": "re.sub('a', lambda m: 'c', text)", "match.group": "re.match('.*', text).group()",
    "match.groups": "re.match('(.*)', text).groups()", "re.compile": "re.compile('a|' * n)",
    "match slices": "re.match('.*', text)[0]", "re.subn": "re.subn('a', '', text)",
    "re.fullmatch": "re.fullmatch('(ab)*', text)", "star-match": "match_rest(xs)",
    "namedtuple._replace": "pair._replace(second=1) == pair2", "namedtuple._asdict": "copy.deepcopy(pair._asdict())",
    "class with a list": "type(holder)(list(xs))", "init_subclass": "make_class(xs)",
    "range reversed": "list(reversed(rng))", "sum of a range": "sum(rng)", "max of a range": "max(rng)",
    "tuple of a generator": "tuple(x for x in xs)", "sum of a generator": "sum(x for x in xs)",
    "dict from rows": "dict(zip(xs, rows))", "dict of pairs": "dict([(x, x) for x in xs])",
    "dict.items list": "list(d.items())", "sorted dict": "sorted(kw)", "min dict": "min(kw)",
    "sum of values": "sum(d.values())", "max of values": "max(d.values())", "list of keys": "list(d)",
    "reversed dict": "list(reversed(d))", "set of text": "set(text)", "list of text": "list(text)",
    "sorted text": "sorted(text)", "max of text": "max(text)", "text reversed": "''.join(reversed(text))",
    "text sliced backwards": "text[::-1]", "map str.join": "''.join(map(str, xs))",
    "any of generator": "any(x < 0 for x in xs)", "zip strict": "list(zip(xs, ys, strict=True))",
    "divmod map": "list(map(divmod, xs, itertools.repeat(7)))", "yield from": "list(pour(xs))",
    "list(holder)": "list(holder)", "set(holder)": "set(holder)", "sum(holder)": "sum(holder)",
    "sorted(holder)": "sorted(holder)", "max(holder)": "max(holder)", "tuple(iter)": "tuple(iter(xs))",
    "''.join(iter)": "''.join(iter(words))", "extend(iter)": "[].extend(iter(xs))",
    "dict.update(pairs)": "dict().update(zip(xs, ys))", "set.update(iter)": "set().update(iter(xs))",
    "list.extend(holder)": "[].extend(holder)", "unpack holder": "a, *q = holder",
    "star-call holder": "args(*holder)", "list + holder": "q = []; q += holder",
    "slice = holder": "q = []; q[:] = holder", "bytes(iter)": "bytes(iter(zs))",
    "deque(iter)": "deque(iter(xs), maxlen=0)", "fsum(iter)": "math.fsum(iter(floats))",
    "countOf(iter)": "operator.countOf(iter(xs), 1)",
}  # fmt: skip
"""Name to statement."""

HELPERS = """
def match_rest(xs):
    match xs:
        case [a, *rest]: return rest
def pour(xs): yield from xs
def make_class(xs):
    class A(Meta, items=xs): pass
    return A
"""


def program() -> str:
    """One program whose ``f(n)`` gives a function of a number of repetitions for every kind."""
    functions = "".join(
        f"    def k{place}(reps):\n        for _ in range(reps):\n            {statement}\n    made[{name!r}] = k{place}\n"
        for place, (name, statement) in enumerate(KINDS.items())
    )
    return HELPERS + SETUP + functions + "    return made\n"
