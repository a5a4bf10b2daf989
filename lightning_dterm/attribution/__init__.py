"""From component scores and their evidence to the tokens that earned them."""

from lightning_dterm.attribution.distribute import Attribution, code_token_mask
from lightning_dterm.attribution.extract import extract_code
from lightning_dterm.attribution.offsets import TokenOffsets

__all__ = ["Attribution", "TokenOffsets", "code_token_mask", "extract_code"]
