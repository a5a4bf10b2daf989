"""CodeXGLUE benchmarks: code-to-code translation between Java and C#."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from lightning_dterm.data.base import CodeDataModule
from lightning_dterm.data.rows import Table, TableTasks, load_file, text_field
from lightning_dterm.types import CodeTask

Language = Literal["java", "csharp"]

PUBLISHED_SIZES = {"train": 10_300, "valid": 500, "test": 1_000}
_COLUMNS = {"java": "java", "csharp": "cs"}
_NAMES = {"java": "Java", "csharp": "C#"}
_HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
_DESCRIPTIONS = (
    "Translate the {source} method {method} to {target}.",
    "Rewrite {method}, a method in {source}, in {target}.",
    "Port {method} from {source} to {target}, keeping what it does.",
    "Give the {target} equivalent of this {source} method, {method}.",
    "Code translation, {source} to {target}: {method}.",
    "The {source} method {method} is needed in a {target} project; convert it.",
)


class CodeXGLUETranslationDataModule(CodeDataModule):
    """CodeXGLUE code-to-code translation: aligned Java and C# methods of Lucene, POI, JGit and Antlr.

    10,300 training, 500 validation and 1,000 test pairs; success is exact match, beside BLEU-4 as the benchmark scores
    it (:mod:`lightning_dterm.metrics.bleu`). Local files and hub copies have the fields ``id``, ``java`` and ``cs``;
    both are opened by ``datasets`` as memory-mapped Arrow tables, so memory does not grow with the data.

    Licence: code MIT, data C-UDA 1.0 (Computational Use of Data Agreement), as the benchmark's repository states.

    Citation: Lu et al., "CodeXGLUE: A Machine Learning Benchmark Dataset for Code Understanding and Generation",
    NeurIPS Datasets and Benchmarks 2021, arXiv:2102.04664.

    Args:
        data_dir: Folder with the three files of ``file_pattern``; give this or ``hub_id``.
        hub_id: Data set on the Hugging Face hub, e.g. ``google/code_x_glue_cc_code_to_code_trans``.
        source: Language of the input, ``java`` or ``csharp``.
        target: Language of the completion; the other one.
        prompt_template: The prompt; ``{source}`` is the input program, ``{source_language}`` and
            ``{target_language}`` are ``Java`` or ``C#``.
        file_pattern: File names; ``{split}`` is ``train``, ``valid`` or ``test``.
        cache_dir: Where ``datasets`` keeps its Arrow files; None is its default.
        **kwargs: See :class:`CodeDataModule`.

    Raises:
        ValueError: for an impossible setting.
        FileNotFoundError: at set-up, if the folder or one of its files is missing.
    """

    def __init__(
        self,
        data_dir: str | None = None,
        hub_id: str | None = None,
        source: Language = "java",
        target: Language = "csharp",
        prompt_template: str = "{source}\n### {target_language}\n",
        file_pattern: str = "translation_java_cs_{split}.jsonl.gz",
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = type(self).__name__
        if (data_dir is None) == (hub_id is None):
            raise ValueError(f"{name}: give either data_dir (local files) or hub_id, got {data_dir=} and {hub_id=}")
        if {source, target} != {"java", "csharp"}:
            raise ValueError(f"{name}: source and target must be java and csharp, one each, got {source=}, {target=}")
        try:
            prompt_template.format(source="", source_language="", target_language="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{name}: prompt_template knows {{source}}, {{source_language}} and {{target_language}} (write a brace "
                f"as {{{{ or }}}}); got {prompt_template!r}"
            ) from error
        if "{source}" not in prompt_template:
            raise ValueError(f"{name}: prompt_template must hold {{source}}, got {prompt_template!r}")
        self.data_dir, self.hub_id, self.cache_dir = data_dir, hub_id, cache_dir
        self.source, self.target = source, target
        self.prompt_template, self.file_pattern = prompt_template, file_pattern

    def _task(self, row: Mapping[str, Any], place: str) -> CodeTask:
        program = text_field(row, _COLUMNS[self.source], place)
        reference = text_field(row, _COLUMNS[self.target], place)
        source, target = _NAMES[self.source], _NAMES[self.target]
        method = re.search(r"(\w+)\s*\(", program)
        # A checksum, not hash(): the wording must not change from process to process.
        wording = _DESCRIPTIONS[zlib.crc32(program.encode()) % len(_DESCRIPTIONS)]
        return CodeTask(
            task_id=f"codexglue-translation/{self.source}-{self.target}/{row.get('id')}",
            task_type="translation",
            language=self.target,
            prompt=self.prompt_template.format(source=program, source_language=source, target_language=target),
            description=wording.format(source=source, target=target, method=method[1] if method else "below"),
            reference=reference,
            source_language=self.source,
            success_metric="exact_match",
            metadata={"benchmark": "codexglue-translation"},
        )

    def _open(self, split: str) -> Table:
        if self.hub_id is not None:
            import datasets

            rows = datasets.load_dataset(self.hub_id, split=_HUB_SPLITS[split], cache_dir=self.cache_dir)
            return Table(f"{self.hub_id} ({split})", rows)
        folder = Path(self.data_dir or "").expanduser()
        wanted = [self.file_pattern.format(split=name) for name in PUBLISHED_SIZES]
        path = folder / self.file_pattern.format(split=split)
        if not path.is_file():
            raise FileNotFoundError(
                f"{type(self).__name__}: no file at {path.absolute()}; data_dir must hold {', '.join(wanted)}"
            )
        return load_file(path, self.cache_dir)

    def _read(self, split: str) -> Sequence[CodeTask]:
        table = self._open(split)
        found, published = len(table.rows), PUBLISHED_SIZES[split]
        if found != published:
            rank_zero_warn(f"{table.name} holds {found:,} pairs, published are {published:,}; figures may not compare")
        return TableTasks([table], self._task)

    def train_tasks(self) -> Sequence[CodeTask]:
        """The published training split."""
        return self._read("train")

    def validation_tasks(self) -> Sequence[CodeTask]:
        """The published validation split."""
        return self._read("valid")

    def test_tasks(self) -> Sequence[CodeTask]:
        """The published test split."""
        return self._read("test")
