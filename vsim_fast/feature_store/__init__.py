"""What was computed once, on disk: features of a video's content, and the ledger of what was done with which file.

A renamed file keeps what was computed of it, an edited one does not.

    keys.py        what tells contents, settings and paths apart
    files.py       feature files: safetensors or .npy, deterministic bytes, memory-mapped reading
    ledger.py      the folder's lock, and SQLite
    store.py       Store: features of many videos        embeddings.py   one vector per video, in one file
    pairs.py       FeatureStore, PairTable: what `dedup` keeps (imports torch, so it is not imported here)
"""

from __future__ import annotations

from vsim_fast.feature_store.files import DamagedFeatures, FeatureFile, file_digest, write_features
from vsim_fast.feature_store.keys import Stamp, content_key, path_text, settings_hash, stamp
from vsim_fast.feature_store.store import (
    Done,
    Failed,
    Problem,
    Sizes,
    State,
    Store,
    StoredVideo,
    collection_paused,
    parse_all,
    wrong_size,
)

__all__ = [
    "DamagedFeatures", "Done", "Failed", "FeatureFile", "Problem", "Sizes", "Stamp", "State", "Store", "StoredVideo",
    "collection_paused", "content_key", "file_digest", "parse_all", "path_text", "settings_hash", "stamp",
    "write_features", "wrong_size",
]  # fmt: skip
