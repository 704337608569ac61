"""What targets share: the models that requests are made for, and errors that are no failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from edgekit.manifest import TensorSpec
from edgekit_runtime.serving import v2
from edgekit_runtime.serving.offer import Offer

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class Target(NamedTuple):
    """Something to be fuzzed.

    Attributes:
        run: reads any bytes.
        seeds: inputs that reach most of it.
        words: what inputs are made of, where bytes at random would seldom make sense.
    """

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()


def attempt(read: Callable[[], T], kind: type[E]) -> T | E:
    """What `read` gives, or the error that it may raise, which must say something."""
    try:
        return read()
    except kind as e:
        error = e
    assert str(error)
    return error


def _spec(name: str, datatype: Any, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


INPUTS = (
    _spec("x", "FP32", -1, 4),
    _spec("n", "UINT64", -1),
    _spec("h", "FP16", 2),
    _spec("b", "BOOL"),
    _spec("i", "INT8", -1, -1),
    _spec("s", "BYTES", -1),
)
OUTPUTS = (_spec("y", "FP32", -1, 4), _spec("t", "BYTES", -1))
OFFER = v2.offered(INPUTS, OUTPUTS, labels=("cat", "dog"))
# Each input has a model of its own as well, so that a request can be right with a single tensor.
OFFERS = (OFFER, *(Offer((spec,), OUTPUTS) for spec in INPUTS))
# Where memory is really taken for what a request claims; the server's own limit is on the body.
MOST_BYTES = 1 << 16
