"""The text of ``stdlib-llama`` as tokens, kept in the user's cache directory so that ranks come up sooner."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import ConfigError
from workbench.recipes import stdlib_text
from workbench.recipes.language_data import cut_windows

if TYPE_CHECKING:
    import numpy as np
    import torch

#: what reading a file that is missing, cut off or not ours can raise
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The vocabulary and the encoded text: int64 [windows, length] for training and validation."""

    vocabulary: stdlib_text.Vocabulary
    train: torch.Tensor
    validation: torch.Tensor


def load_corpus(*, max_bytes: int, vocabulary: int, length: int) -> Corpus:
    """Load the encoded sources of the standard library, or encode them and keep the result in the cache.

    ``max_bytes``: amount of source text. ``vocabulary``: tokens. ``length``: tokens of a window. The name of the cached
    file is a hash of everything that the tokens depend on. Where the cache cannot be read or written, the text is
    encoded as it is without a cache. Raises ``ConfigError`` for too little text for one window of each.
    """
    text = stdlib_text.read_sources(stdlib_text.stdlib_directory(), max_bytes)
    kind = f"stdlib-llama-{max_bytes}-{vocabulary}-py{sys.version_info.major}{sys.version_info.minor}"
    file = cache_directory() / f"{kind}-{_hash_inputs(text, vocabulary)}.npz"
    found = _read(file)
    if found is None:
        _check_amount(text, max_bytes)
        found = _encode(text, vocabulary)
        _write(file, found, replaces=f"{kind}-*.npz")
    vocabulary_json, train, validation = found
    return Corpus(
        vocabulary=stdlib_text.Vocabulary.from_json(vocabulary_json),
        train=cut_windows(train, length, _named("training", max_bytes), "--size"),
        validation=cut_windows(validation, length, _named("validation", max_bytes), "--size"),
    )


def _named(part: str, max_bytes: int) -> str:
    return f"the {part} text in {max_bytes} bytes of the standard library"


def _check_amount(text: stdlib_text.Text, max_bytes: int) -> None:
    for part, files in (("training", text.train), ("validation", text.validation)):
        if not any(files):
            raise ConfigError(f"{_named(part, max_bytes)} is empty: read more bytes (max_bytes)", field="--size")


def cache_directory() -> Path:
    """Directory of files that can be made again: ``XDG_CACHE_HOME`` or what the platform uses."""
    import platformdirs

    return platformdirs.user_cache_path("dist-workbench", appauthor=False)


_Encoded = tuple[str, "np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]


def _encode(text: stdlib_text.Text, size: int) -> _Encoded:
    vocabulary = stdlib_text.Vocabulary.train(text.train, size)
    return vocabulary.to_json(), vocabulary.encode_files(text.train), vocabulary.encode_files(text.validation)


def _hash_inputs(text: stdlib_text.Text, vocabulary: int) -> str:
    found = hashlib.sha256(f"{metadata.version('tokenizers')} {vocabulary}".encode())
    found.update(Path(stdlib_text.__file__).read_bytes())  # how texts become tokens
    for part in _with_lengths(text):
        found.update(part)
    return found.hexdigest()[:32]


def _with_lengths(text: stdlib_text.Text) -> Iterable[bytes]:
    for files in (text.train, text.validation):
        yield len(files).to_bytes(8, "big")
        for content in files:
            encoded = content.encode()
            yield len(encoded).to_bytes(8, "big")
            yield encoded


def _read(file: Path) -> _Encoded | None:
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as arrays:
            return str(arrays["vocabulary"]), arrays["train"], arrays["validation"]
    except _UNREADABLE:  # encoded anew
        return None


def _write(file: Path, encoded: _Encoded, *, replaces: str) -> None:
    """Write ``file`` in one step and remove files that match ``replaces``: those of earlier versions."""
    import numpy as np

    vocabulary, train, validation = encoded
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        earlier = [old for old in file.parent.glob(replaces) if old != file]
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as opened:
            temporary = opened.name
            np.savez(opened, vocabulary=np.array(vocabulary), train=train, validation=validation)
        os.replace(temporary, file)
        for old in earlier:
            old.unlink(missing_ok=True)
    except OSError:  # a cache that cannot be written costs the next start some seconds, nothing else
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
