"""The command line: ``lightning-dterm fit|validate|test|predict|export --config ...``, or ``python train.py ...``."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_dterm.checkpointing import check_ckpt_path
from lightning_dterm.config_files import Layer, check_layers, locate, read_layers
from lightning_dterm.modules.distributed import ProcessFailed
from lightning_dterm.trainer import DTermTrainer as DTermTrainer

if TYPE_CHECKING:
    from rich.table import Table

DEBUG_VARIABLE = "LIGHTNING_DTERM_DEBUG"
USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells say it

# Errors whose message says all that a user needs; a failed process shows the whole story itself.
_PLAIN = (MisconfigurationException, ProcessFailed, FileNotFoundError, NotADirectoryError, PermissionError)

_CONNECTORS = ("checkpoint_connector.py", "accelerator_connector.py")  # of Lightning's Trainer

_BEST = (
    "ckpt_path best is the best checkpoint of a fit in the same process, and each command is a process of its own: "
    "give the checkpoint's file, or last"
)

_NO_LAST = (
    "ckpt_path last: there is no last checkpoint to {} in the folder of this configuration's ModelCheckpoint (and "
    "save_last is what writes one): give the checkpoint's file"
)

_LOADERS = {"fit": "train_dataloader", "validate": "val_dataloader"}


class DTermParser(LightningArgumentParser):
    """Reports an error as one line that names the file it is in; takes no option by its first letters alone."""

    arguments: ClassVar[list[str]] = []  # the command line
    layers: ClassVar[list[Layer]] = []  # its configuration files

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and exit with status 2; the whole story in debug mode."""
        if _debug():
            raise ex or ValueError(message)
        file = locate(message, self.layers, self.arguments)
        fail(condense(message) + (f", in {file}" if file else ""))


class StageConfigCallback(SaveConfigCallback):
    """Saves the resolved configuration as ``config.yaml`` for fit and ``config_<stage>.yaml`` for the others."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save, each stage under its own name: testing must not overwrite how a run was trained."""
        if stage != "fit":
            self.config_filename = f"config_{getattr(stage, 'value', stage)}.yaml"
        super().setup(trainer, pl_module, stage)


class DTermCLI(LightningCLI):
    """LightningCLI where YAML and command line have the last word and mistakes cost one line."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            save_config_callback=StageConfigCallback,
            save_config_kwargs={"overwrite": True},
            trainer_class=DTermTrainer,
            parser_class=DTermParser,
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the configuration files for what the parser says nothing about, or not where; then parse."""
        arguments = list(sys.argv[1:] if args is None else args)
        command = next((argument for argument in arguments if argument in self._subcommand_parsers), None)
        DTermParser.arguments, DTermParser.layers = [], []
        if command is not None:
            DTermParser.arguments = arguments[arguments.index(command) + 1 :]
            DTermParser.layers = read_layers(DTermParser.arguments)
            names = {action.dest.split(".")[0] for action in self._subcommand_parsers[command]._actions}
            check_layers(DTermParser.layers, names - {"help", "print_config"})
        super().parse_arguments(parser, args)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's four and ``export``."""
        return {**LightningCLI.subcommands(), "export": {"model", "datamodule"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Load checkpoints as data: what this package saves needs no code to be run."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if "weights_only" in self._subcommand_method_arguments[subcommand]:
            parser.set_defaults({"weights_only": True})
        return parser

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint is there, and leave its hyperparameters alone.

        Lightning would let the ``hyper_parameters`` stored in a checkpoint override YAML and the command line without a
        word (Lightning issue 21455): ``--model.lr`` given at resume would do nothing.
        """
        subcommand = self.config.get("subcommand")
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path == "best":
            fail(_BEST)
        problem = check_ckpt_path(str(path)) if path else None
        if problem:
            fail(problem)

    def _run_subcommand(self, subcommand: str) -> None:
        """Refuse a run without data, or of a checkpoint that is not there, before anything is loaded for it."""
        loader = _LOADERS.get(subcommand, f"{subcommand}_dataloader")
        if subcommand != "export" and self.datamodule is None and not is_overridden(loader, self.model):
            fail(
                f"no data to {subcommand}: add --data CLASS (such as lightning_dterm.data.JsonlDataModule) or a "
                "--config that has data"
            )
        if subcommand in ("validate", "test", "predict") and self._finds_no_last(subcommand):
            fail(_NO_LAST.format(subcommand))
        super()._run_subcommand(subcommand)

    def _finds_no_last(self, subcommand: str) -> bool:
        """Whether ``ckpt_path last`` finds no file: Lightning would go on with the untrained model after a warning."""
        if self.config[subcommand].get("ckpt_path") != "last":
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            connector = self.trainer._checkpoint_connector
            found = connector._parse_ckpt_path(TrainerFn(subcommand), "last", model_provided=True, model_connected=True)
        return found is None


def condense(message: str) -> str:
    """What a user needs of one of jsonargparse's messages: the key and the reason, not every alternative it tried."""
    head, _, tail = message.partition("Does not validate against any of the Union subtypes")
    if not tail:
        return f"{message} (--print_config shows all options)" if "not accepted" in message else message
    reasons = [line.strip(" -") for line in tail.partition("Errors:")[2].partition("Given value type:")[0].splitlines()]
    wanted = [reason for reason in reasons if reason and "<class 'NoneType'>" not in reason]
    key = " ".join(line.strip() for line in head.splitlines()[:1])
    return f"{key} {'; '.join(wanted)}" if wanted else message


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with status 2."""
    line = " ".join(str(message).split())
    print(f"lightning-dterm: error: {line}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def _debug() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def packaged_config(path: str) -> str:
    """``path`` where it exists, else the file of that name among the packaged configurations (if there is one).

    ``configs/strategy/ddp.yaml`` and ``strategy/ddp.yaml`` both name the packaged overlay.
    """
    if Path(path).exists():
        return path
    configs = Path(_configs_folder())
    relative = Path(path)
    parts = relative.parts[1:] if relative.parts[:1] == ("configs",) else relative.parts
    candidate = configs.joinpath(*parts) if parts and not relative.is_absolute() and ".." not in parts else None
    return str(candidate) if candidate is not None and candidate.is_file() else path


def _configs_folder() -> str:
    import lightning_dterm.configs

    return str(Path(str(lightning_dterm.configs.__file__)).parent)


def resolve_config_arguments(args: Sequence[str]) -> list[str]:
    """Arguments with every ``--config FILE`` resolved; exits with one line where the file is nowhere."""
    resolved: list[str] = []
    expects_path = False
    for argument in args:
        if expects_path:
            argument, expects_path = _existing_config(argument), False
        elif argument in ("-c", "--config"):
            expects_path = True
        elif argument.startswith("--config="):
            argument = f"--config={_existing_config(argument.removeprefix('--config='))}"
        resolved.append(argument)
    return resolved


def _existing_config(path: str) -> str:
    found = packaged_config(path)
    if not Path(found).is_file() and "\n" not in found and not found.lstrip().startswith("{"):
        folder = Path(_configs_folder())
        packaged = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.yaml"))
        fail(f"configuration file not found: {path}; packaged ones: {', '.join(packaged)}")
    return found


def user_error(error: BaseException) -> str | None:
    """The message of an exception that is about the input rather than a defect, None for a defect.

    jsonargparse wraps what a constructor raises: the cause counts.
    """
    if str(error).startswith("Does not validate against any of the Union subtypes"):
        cause = error.__cause__ or error.__context__
        return (user_error(cause) if cause is not None else None) or condense(str(error))
    message = str(error) or type(error).__name__
    if isinstance(error, _PLAIN):
        return message
    frames = traceback.extract_tb(error.__traceback__)
    package = Path(__file__).resolve().parent
    ours = tuple(f"{folder}{os.sep}" for folder in (package, package.parent / "data", package.parent / "callbacks"))
    if not isinstance(error, (ValueError, FloatingPointError)) or not frames:
        return None
    # An error that this package raised itself, or Lightning about ckpt_path, strategies and the like; not one that came
    # up from a library.
    source = frames[-1].filename
    return message if source.startswith(ours) or source.endswith(_CONNECTORS) else None


def _quiet() -> None:
    """Hide advertisements and warnings about what this package does on purpose."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "litlogger" not in record.getMessage())
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run.*")
    warnings.filterwarnings("ignore", message=".*Using ModelCheckpoint with manual optimization.*")
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers which may be a bottleneck.*")


def print_summary(path: str | Path) -> None:
    """Print ``summary.json`` of a before/after run as tables, and where the run's logs and samples are."""
    from rich.console import Console

    file = Path(path)
    if not file.is_file():
        fail(f"no summary at {path}: the run has not finished (resume it with --ckpt_path, or start it anew)")
    try:
        summary = json.loads(file.read_text())
    except ValueError as error:
        fail(f"{path} is not whole ({error}): remove it, and resume the run with --ckpt_path or start it anew")
    for mode, part in (("greedy", summary), ("sampled", summary.get("sampled"))):
        if part is not None:
            Console().print(_summary_table(f"{file}: {mode}", part))
    if summary.get("weights"):
        from lightning_dterm.callbacks.report import weights_table

        Console().print(weights_table(summary["weights"], "before -> after"))
    kl = "-" if summary["kl"] is None else f"{summary['kl']:.4g}"
    print(f"KL to the reference: {kl}; training took {summary['train_seconds']:.0f} s")
    print(f"TensorBoard: tensorboard --logdir {file.parent}")
    print(f"samples: {file.parent / 'samples'}")


def _summary_table(title: str, part: dict[str, Any]) -> Table:
    """One decoding mode's figures before and after training; ``-`` where one does not apply."""
    from rich.table import Table

    table = Table(title=title)
    for name in ("task type", "metric", "before", "after", "change"):
        table.add_column(name, justify="left" if name in ("task type", "metric") else "right")
    shown = ("success", "exact_match", "bleu", "compile_rate", "length")
    rows = [("all", "mean_success", part["mean_success"])]
    rows += [(kind, name, cells[name]) for kind, cells in part["tasks"].items() for name in shown if name in cells]
    for kind, name, cell in rows:
        before, after = cell["before"], cell["after"]
        known = before is not None and after is not None
        texts = ["-" if value is None else f"{value:.3f}" for value in (before, after)]
        table.add_row(kind, name, *texts, f"{after - before:+.3f}" if known else "-")
    return table


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line. Modules in the working folder can be named in configurations; installed ones come first.

    Args:
        args: Arguments; by default those of the process.

    Raises:
        SystemExit: 2 after one line on stderr where the input is at fault; ``--debug`` (or LIGHTNING_DTERM_DEBUG=1)
            raises the exception itself instead. 130 after an interrupt that did not end training in good order.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if "--debug" in arguments:
        arguments.remove("--debug")
        os.environ[DEBUG_VARIABLE] = "1"
    if arguments[:1] == ["summary"] and len(arguments) == 2:
        print_summary(arguments[1])
        return
    _quiet()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        DTermCLI(resolve_config_arguments(arguments))
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which Lightning turns into status 1
            raise SystemExit(INTERRUPTED) from None
        raise
    except KeyboardInterrupt:
        print("\nlightning-dterm: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        message = None if _debug() else user_error(error)
        if message is None:
            raise
        fail(message)


if __name__ == "__main__":
    main()
