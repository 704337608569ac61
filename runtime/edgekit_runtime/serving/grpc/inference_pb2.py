"""The protocol's messages, made from their compiled description.

Generated modules demand the protobuf of their compiler's age, and register their messages under
names that a client library in the same process takes as well. A description (`inference.binpb`, of
`proto/inference.proto`) read into a pool of its own does neither. The types beside this module
(`inference_pb2.pyi`) are generated.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "inference"


def _messages() -> dict[str, Any]:
    """Message classes by name, and the description of the file that they come from."""
    raw = resources.files(__package__).joinpath("inference.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    names = [file.name for file in files]
    made = message_factory.GetMessageClassesForFiles(names, pool)
    found = {name.removeprefix(f"{_PACKAGE}."): kind for name, kind in made.items()}
    return {"DESCRIPTOR": pool.FindFileByName(names[-1]), **found}


globals().update(_messages())
