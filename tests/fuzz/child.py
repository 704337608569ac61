"""The fuzzer's own process: one target under libFuzzer, its coverage counted by atheris.

    python -m tests.fuzz.child TARGET FOLDER [LIBFUZZER-OPTION]...

The corpus and the words of the target are kept in the folder.

It runs in the environment that `run` makes, and ends with a code other than 0 where the target
fails; libFuzzer has then written the input to a file.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import atheris  # type: ignore[import-untyped] # of another environment

# What is imported in this block is instrumented.
with atheris.instrument_imports(include=["edgekit", "edgekit_runtime"]):
    from tests.fuzz.targets import TARGETS


def main(name: str, folder: Path, *options: str) -> None:
    """Fuzz a target, beginning with its seeds; does not return."""
    target = TARGETS[name]
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir(parents=True, exist_ok=True)
    if target.words:
        escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        options = (f"-dict={words}", *options)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    # A server's log would fill with what a stranger can cause.
    warnings.simplefilter("error")
    atheris.Setup([sys.argv[0], str(corpus), *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
