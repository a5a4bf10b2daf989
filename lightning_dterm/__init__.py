"""lightning-dterm: task-aware, dense-reward PPO for code language models, on PyTorch Lightning."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout the packages ``lightning_dterm.data`` and ``lightning_dterm.callbacks`` are the folders ``data/`` and
# ``callbacks/`` beside this one (a wheel maps them inside). Appending the repository root makes an uninstalled
# ``python train.py`` and strict editable installs find them under their one true name.
_root = _Path(__file__).resolve().parent.parent
if (_root / "train.py").is_file() and (_root / "data" / "__init__.py").is_file():
    __path__.append(str(_root))
