"""CodeBLEU against published values and the parts against their definitions."""

from __future__ import annotations

import math
import pickle

import pytest
from sacrebleu.metrics.bleu import BLEU

from lightning_dterm.metrics import CodeBLEU
from lightning_dterm.metrics.codebleu import weighted_counts
from lightning_dterm.structure.keywords import KEYWORDS
from lightning_dterm.structure.tables import TABLES

SIGN = "public static int Sign ( double d ) { return ( int ) ( ( d == 0 ) ? 0 : ( d < 0 ) ? -1 : 1 ) ; }"
FLOAT = "public static int Sign ( double d ) { return ( float ) ( ( d == 0 ) ? 0 : ( c < 0.0 ) ? -1 : 1 ) ; }"
RENAMED = "public static int Sign ( double c ) { return ( int ) ( ( c == 0 ) ? 0 : ( c < 0 ) ? -1 : 1 ) ; }"


def codebleu(language: str, completion: str, *references: str, **options: str) -> dict[str, float]:
    metric = CodeBLEU(language, **options)  # type: ignore[arg-type]
    metric.update([completion], [references])
    return {name: float(value) for name, value in metric.compute().items()}


def test_the_examples_of_the_paper_and_of_codexglue() -> None:
    # CodeXGLUE's figure says BLEU 78.46, data flow 2/3 and, with its older Java grammar, syntax 13/21: 11/19 today.
    one = codebleu("java", FLOAT, SIGN)
    assert one["ngram"] == pytest.approx(0.7846, abs=5e-5)
    assert one["syntax"] == pytest.approx(11 / 19)
    assert one["dataflow"] == pytest.approx(2 / 3)
    assert one["codebleu"] + (13 / 21 - 11 / 19) / 4 == pytest.approx(0.7019 + 0.0101, abs=1e-3)
    # Section 3.4, example 2: only the variable is called differently. BLEU 75.71, CodeBLEU 88.04.
    two = codebleu("java", RENAMED, SIGN)
    assert two["ngram"] == pytest.approx(0.7571, abs=5e-5)
    assert (two["syntax"], two["dataflow"]) == (1, 1)
    assert two["codebleu"] == pytest.approx(0.8804, abs=5e-5)


@pytest.mark.parametrize(
    ("completion", "reference", "published"),
    [
        ("def bar ( y , x ) :\n    a = x * x\n    return a", "def foo ( x ) :\n    return x", 0.36),
        ("def foo ( x ) :\n    return x * x", "def bar ( x ) :\n    return x", 0.61),
        ("def bar ( x ) :\n    return x", "def foo ( x ) :\n    return x", 0.85),
        ("def foo ( x ) :\n    return x", "def foo ( x ) :\n    return x", 1.0),
        ("def add ( a , b ) :\n return a + b", "def sum ( first , second ) :\n return second + first", 0.5538),
    ],
)
def test_the_examples_of_the_codebleu_package(completion: str, reference: str, published: float) -> None:
    assert codebleu("python", completion, reference)["codebleu"] == pytest.approx(published, rel=0.01)


def test_a_reference_without_data_flow_is_said_and_handled_as_asked() -> None:
    words, reference = "some rannnndom words in length more than 3", "def test ( ) :\n pass"
    values = {
        way: codebleu("python", words, reference, missing_data_flow=way) for way in ("renormalize", "zero", "one")
    }
    assert all(math.isnan(value["dataflow"]) for value in values.values())
    assert [value["codebleu"] for value in values.values()] == [0.0, 0.0, 0.25]  # the package says 0.25
    same = codebleu("python", reference, reference)
    assert same["codebleu"] == pytest.approx(1)
    assert codebleu("python", reference, reference, missing_data_flow="zero")["codebleu"] == pytest.approx(0.75)
    # A data flow that is there and matched by nothing is 0, not 1.
    assert codebleu("python", "pass", "x = y\nz = x")["dataflow"] == 0


def test_the_n_gram_part_is_bleu() -> None:
    pairs = [(FLOAT, SIGN), (RENAMED, SIGN), ("a b c d e f", "a b c x e f"), ("a b c d e", "a b c d e f g")]
    metric = CodeBLEU("java")
    metric.update([a for a, _ in pairs], [b for _, b in pairs])
    bleu = BLEU(smooth_method="none", tokenize="none", force=True)
    expected = bleu.corpus_score([a for a, _ in pairs], [[b for _, b in pairs]]).score / 100
    assert float(metric.compute()["ngram"]) == pytest.approx(expected)


def test_keywords_weigh_five_times_as_much() -> None:
    counts = weighted_counts(["return", "y"], [["return", "x"]], KEYWORDS["python"])
    assert (counts[0], counts[4]) == (1.0, 1.2)
    counts = weighted_counts(["give", "x"], [["return", "x"]], KEYWORDS["python"])
    assert (counts[0], counts[4]) == (0.2, 1.2)
    assert set(KEYWORDS) == set(TABLES)
    assert {"for", "while", "if", "return"} <= KEYWORDS["java"] & KEYWORDS["cpp"] & KEYWORDS["csharp"] & KEYWORDS["php"]


def test_it_depends_on_no_split_and_survives_a_pickle() -> None:
    completions, references = [FLOAT, RENAMED, "int x = 1 ;"], [SIGN, [SIGN, FLOAT], "int y = x ;"]
    whole, parts = CodeBLEU("java"), CodeBLEU("java")
    whole.update(completions, references)
    for completion, reference in zip(completions, references, strict=True):
        parts.update([completion], [reference])
    parts = pickle.loads(pickle.dumps(parts))
    assert {k: float(v) for k, v in parts.compute().items()} == pytest.approx(
        {k: float(v) for k, v in whole.compute().items()}
    )
    whole.reset()
    assert all(math.isnan(float(value)) for value in whole.compute().values())


def test_empty_and_broken_programs_are_defined() -> None:
    for completion in ("", ")))((", "\x00"):
        values = codebleu("java", completion, SIGN)
        assert values["codebleu"] == pytest.approx(0, abs=0.02)
    with pytest.raises(ValueError, match="2 completions for 1 references"):
        CodeBLEU("java").update(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no grammar for 'cobol'"):
        CodeBLEU("cobol")
    with pytest.raises(ValueError, match="four numbers"):
        CodeBLEU("java", weights=(1, 1, 1))
    with pytest.raises(ValueError, match="at least one reference"):
        CodeBLEU("java").update(["a"], [[]])
