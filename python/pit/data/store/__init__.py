"""The token store: preferences tokenised once into memory-mapped Arrow files, several per fold, with a manifest.

The format is plain Arrow IPC (large lists of int32 in the columns prompt, better and worse, uncompressed), so any Arrow
tool opens it; `manifest.json` adds the tokenizer, the windows, the folds and the checksums.
"""

from pit.data.store.format import BATCH_ROWS, MANIFEST, VERSION, StoreError, is_store
from pit.data.store.read import Fold, Store
from pit.data.store.write import SHARD_ROWS, Progress, build

__all__ = [
    "BATCH_ROWS",
    "MANIFEST",
    "SHARD_ROWS",
    "VERSION",
    "Fold",
    "Progress",
    "Store",
    "StoreError",
    "build",
    "is_store",
]
