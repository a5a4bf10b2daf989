from __future__ import annotations

import gzip
import json
import os
import warnings
from pathlib import Path

import datasets
import lightning as L
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_dterm.data import CodeXGLUETranslationDataModule, JsonlDataModule, MicroCodeDataModule, RowError
from lightning_dterm.data.jsonl import task_from_row
from lightning_dterm.types import CallTest, CodeTask

SHARED = Path(os.environ.get("LIGHTNING_DTERM_SHARED", Path(__file__).parents[2] / "shared")) / "data" / "codexglue"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"CodeXGLUE's files are not at {SHARED}")

PAIRS = [
    {"id": 0, "java": "public int size() {return n;}", "cs": "public virtual int Size(){return n;}"},
    {"id": 1, "java": 'public String name() {return "ä{}";}', "cs": 'public override string Name(){return "ä{}";}'},
    {"id": 2, "java": "int f(int a) {return a+1;}", "cs": "int F(int a){return a+1;}"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(path: Path, rows: list) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def row(**changes) -> dict:
    fields = {"task_id": "a", "task_type": "synthesis", "language": "python", "prompt": "p", "reference": "x = 1"}
    return {key: value for key, value in {**fields, **changes}.items() if value is not ...}


# --- JSONL -----------------------------------------------------------------------------------------------------------


def test_rows_become_tasks(tmp_path) -> None:
    tests = [{"args": [1, "b", [2]], "expected": {"k": 1.5}}, {"args": [], "expected": None, "visible": False}]
    literal = [{"args": "((1, 2), {3})", "expected": "(1, b'x')", "literal": True}]
    first = write_rows(
        tmp_path / "one.jsonl",
        [row(tests=tests, entry_point="f", metadata={"n": [1]}, image="a.png"), row(task_id="b", image=None)],
    )
    second = write_rows(
        tmp_path / "two.jsonl.gz", [row(task_id="c", tests=literal, entry_point="g", prompt="é\u2028x")]
    )
    data = JsonlDataModule(test_files=[str(first), str(second)])
    data.setup("test")
    one, two, three = data.tasks("test")
    assert one == CodeTask(
        "a", "synthesis", "python", "p", "p", "x = 1", entry_point="f", metadata={"n": [1]}, image="a.png",
        tests=(CallTest((1, "b", [2]), {"k": 1.5}), CallTest((), None, visible=False)),
    )  # fmt: skip
    assert two.success_metric == "exact_match"
    assert three.prompt == "é\u2028x"
    assert three.tests == (CallTest(((1, 2), {3}), (1, b"x")),)
    assert type(three.tests[0].expected) is tuple
    assert data.tasks("test")[-1] == three
    with pytest.raises(IndexError):
        data.tasks("test")[3]


def test_parquet_with_nested_and_with_text_columns(tmp_path) -> None:
    nested = [row(tests=[{"args": [1], "expected": 2, "visible": False}], entry_point="f")]
    datasets.Dataset.from_list(nested).to_parquet(tmp_path / "nested.parquet")
    as_text = [
        row(tests=json.dumps([{"args": [1, "a"], "expected": [2]}]), entry_point="f", metadata='{"k": 1}', image=b"PNG")
    ]
    datasets.Dataset.from_list(as_text).to_parquet(tmp_path / "text.parquet")
    data = JsonlDataModule(test_files=str(tmp_path / "*.parquet"))
    data.setup("test")
    first, second = data.tasks("test")
    assert first.tests == (CallTest((1,), 2, visible=False),)
    assert second.tests == (CallTest((1, "a"), [2]),)
    assert second.metadata == {"k": 1}
    assert (first.image, second.image) == (None, b"PNG")


@pytest.mark.parametrize(
    ("bad", "field", "words"),
    [
        ("{", "(whole line)", "not JSON"),
        ("", "(whole line)", "remove it"),
        ("[1]", "(whole line)", "JSON object is needed, found list"),
        (row(task_id=...), "task_id", "missing; the row has task_type"),
        (row(task_id=7), "task_id", "text is needed, found int"),
        ('{"task_id": "\\ud800"}', "task_id", "not valid Unicode"),
        (row(image=7), "image", "text is needed, found int"),
        (row(task_type="cooking"), "task_type", "'cooking' is none of summarization"),
        (row(promt="typo"), "promt", "put it in 'metadata'"),
        (row(reference=...), "reference", "add a reference or tests"),
        (row(tests={"a": 1}), "tests", "a list is needed, found dict"),
        (row(tests="[1"), "tests", "not JSON"),
        (row(metadata=[1]), "metadata", "an object is needed"),
        (row(tests=[{"args": [1]}], entry_point="f"), "tests[0]", '"expected"'),
        (row(tests=[{"args": 1, "expected": 1}], entry_point="f"), "tests[0].args", "found int"),
        (row(tests=[{"args": [], "expected": 1, "hidden": True}], entry_point="f"), "tests[0].hidden", "no part"),
        (row(tests=[{"args": [], "expected": 1, "visible": "no"}], entry_point="f"), "tests[0].visible", "true or"),
        (row(tests=[{"args": "open('x')", "expected": "1", "literal": True}]), "tests[0].args", "not a Python literal"),
        (row(tests=[{"args": [], "expected": 1}]), "entry_point", "name the function"),
        (row(success_metric="tests"), "tests", "choose 'exact_match'"),
        (row(success_metric="luck"), "success_metric", "'luck' is none of tests, exact_match"),
    ],
)
def test_a_malformed_row_is_one_clear_error(tmp_path, bad, field, words) -> None:
    path = write_rows(tmp_path / "bad.jsonl", [row(), bad, row()])
    with pytest.raises(RowError) as error:
        JsonlDataModule(test_files=str(path)).setup("test")
    assert str(error.value).startswith(f"{path}, line 2, field {field!r}: ")
    assert words in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["args", "expected", "k"]), inner),
)


@given(
    st.dictionaries(
        st.sampled_from([*row(), "tests", "metadata", "entry_point", "success_metric", "image"]), json_values
    )
)
def test_any_row_is_a_task_or_a_row_error(changes) -> None:
    try:
        made = task_from_row({**row(), **changes}, "file, line 1")
    except RowError as error:
        message = str(error)
        made = None
    if made is None:
        assert message.startswith("file, line 1, field ")
    else:
        assert made.tests or made.success_metric == "exact_match"


def test_file_errors_name_the_path(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"test_files: no file at .*gone\.jsonl; correct the path"):
        JsonlDataModule(test_files=str(tmp_path / "gone.jsonl")).setup("test")
    with pytest.raises(FileNotFoundError, match="no file at"):
        JsonlDataModule(test_files=str(tmp_path / "*.jsonl")).setup("test")
    with pytest.raises(ValueError, match="train_files is not set"):
        JsonlDataModule().setup("fit")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl: the file is empty"):
        JsonlDataModule(test_files=str(tmp_path / "empty.jsonl")).setup("test")
    (tmp_path / "latin.jsonl").write_bytes(b'{"task_id": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin\.jsonl: not readable as UTF-8 text.*UnicodeDecodeError"):
        JsonlDataModule(test_files=str(tmp_path / "latin.jsonl")).setup("test")
    (tmp_path / "no.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"no\.parquet: not readable as Parquet"):
        JsonlDataModule(test_files=str(tmp_path / "no.parquet")).setup("test")


def test_fit_without_validation_files(tmp_path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [row(task_id=str(index)) for index in range(8)])
    data = JsonlDataModule(train_files=str(path), batch_size=4)
    seen: list[str] = []

    class Module(L.LightningModule):
        def training_step(self, batch: list[CodeTask], batch_idx: int) -> None:
            seen.extend(task.task_id for task in batch)

        def validation_step(self, batch: list[CodeTask], batch_idx: int) -> None:
            raise AssertionError("there is nothing to validate on")

        def configure_optimizers(self) -> None:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
        ).fit(Module(), data)  # fmt: skip
    assert sorted(seen) == [str(index) for index in range(8)]
    with pytest.raises(ValueError, match="validation_files is not set"):
        JsonlDataModule(train_files=str(path)).setup("validate")


# --- CodeXGLUE -------------------------------------------------------------------------------------------------------


def codexglue_folder(folder: Path) -> Path:
    for split in ("train", "valid", "test"):
        write_rows(folder / f"translation_java_cs_{split}.jsonl.gz", PAIRS)
    return folder


def test_translation_both_ways(tmp_path) -> None:
    folder = str(codexglue_folder(tmp_path))
    data = CodeXGLUETranslationDataModule(folder)
    with pytest.warns(UserWarning, match="holds 3 pairs, published are 1,000"):
        data.setup("test")
    forward = list(data.tasks("test"))
    assert [task.prompt for task in forward] == [pair["java"] + "\n### C#\n" for pair in PAIRS]
    assert [task.reference for task in forward] == [pair["cs"] for pair in PAIRS]
    assert {(task.language, task.source_language, task.success_metric) for task in forward} == {
        ("csharp", "java", "exact_match")
    }
    assert all("Java" in task.description and "C#" in task.description for task in forward)
    assert "size" in forward[0].description
    template = "{source_language} {{}}: {source} -> {target_language}:"
    data = CodeXGLUETranslationDataModule(folder, source="csharp", target="java", prompt_template=template)
    with pytest.warns(UserWarning, match="published are 500"):
        data.setup("validate")
    back = data.tasks("validation")[1]
    assert back.prompt == f"C# {{}}: {PAIRS[1]['cs']} -> Java:"
    assert (back.reference, back.language, back.source_language) == (PAIRS[1]["java"], "java", "csharp")
    assert len({task.task_id for task in [*forward, *data.tasks("validation")]}) == 6


def test_translation_from_the_hub_reads_the_same_columns(monkeypatch) -> None:
    asked: list[tuple] = []

    def load_dataset(name: str, *, split: str, cache_dir: str | None) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(PAIRS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = CodeXGLUETranslationDataModule(hub_id="org/name")
    with pytest.warns(UserWarning, match=r"org/name \(train\) holds 3 pairs, published are 10,300"):
        data.setup("fit")
    assert asked == [("org/name", "train"), ("org/name", "validation")]
    assert data.tasks("train")[2].reference == PAIRS[2]["cs"]


def test_translation_errors(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*nowhere.*valid\.jsonl\.gz, translation_java_cs_test"):
        CodeXGLUETranslationDataModule(str(tmp_path / "nowhere")).setup("test")
    for arguments, words in [
        ({}, "either data_dir"),
        ({"data_dir": "a", "hub_id": "b"}, "either data_dir"),
        ({"data_dir": "a", "source": "csharp"}, "one each"),
        ({"data_dir": "a", "prompt_template": "{code}"}, "prompt_template knows"),
        ({"data_dir": "a", "prompt_template": "{source} {"}, "prompt_template knows"),
        ({"data_dir": "a", "prompt_template": "translate"}, "must hold {source}"),
    ]:
        with pytest.raises(ValueError, match=words):
            CodeXGLUETranslationDataModule(**arguments)
    write_rows(tmp_path / "translation_java_cs_test.jsonl.gz", [*PAIRS, {"id": 3, "java": "x"}])
    data = CodeXGLUETranslationDataModule(str(tmp_path))
    with pytest.warns(UserWarning, match="holds 4 pairs"):
        data.setup("test")
    with pytest.raises(RowError, match="line 4, field 'cs': missing; the row has id, java"):
        data.tasks("test")[3]


@needs_shared
def test_translation_on_the_published_files() -> None:
    data = CodeXGLUETranslationDataModule(str(SHARED), batch_size=8, eval_batch_size=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("fit")
        data.setup("test")
    assert [len(data.tasks(split)) for split in ("train", "validation", "test")] == [10_300, 500, 1_000]
    batches = [list(batch) for batch in data.test_dataloader()]
    assert [len(batch) for batch in batches] == [100] * 10
    tasks = [task for batch in batches for task in batch]
    assert len({task.task_id for task in tasks}) == 1_000
    assert len({task.description for task in tasks}) > 500
    assert tasks[0].reference.startswith("public override void Serialize(")
    assert len(next(iter(data.train_dataloader()))) == 8
    revised = CodeXGLUETranslationDataModule(str(SHARED), file_pattern="translation_java_cs_rev_{split}.jsonl.gz")
    with pytest.warns(UserWarning, match="10,295 pairs, published are 10,300"):
        revised.setup("fit")


# --- MicroCode -------------------------------------------------------------------------------------------------------


def test_microcode_splits() -> None:
    data = MicroCodeDataModule(
        train_size=40, validation_size=10, test_size=15, task_types=("repair", "synthesis"), seed=3
    )
    data.setup("fit")
    data.setup("test")
    assert [len(data.tasks(split)) for split in ("train", "validation", "test")] == [40, 10, 15]
    assert {task.task_type for task in data.tasks("train")} == {"repair", "synthesis"}
    other = MicroCodeDataModule(
        train_size=40, validation_size=10, test_size=15, task_types=("repair", "synthesis"), seed=4
    )
    other.setup("fit")
    other.setup("test")
    assert list(other.tasks("test")) == list(data.tasks("test"))
    assert list(other.tasks("train")) != list(data.tasks("train"))
    with pytest.raises(ValueError, match="test_size"):
        MicroCodeDataModule(test_size=0)
    with pytest.raises(ValueError, match="task_types"):
        MicroCodeDataModule(task_types=())
