"""Delta: what a device fetches in place of a whole bundle where it has an earlier one.

`make` runs on a workstation, `apply` on a board: there it needs numpy and zstandard and a few
blocks of memory. What `apply` leaves is the new `.edge` file byte for byte, checked against a
sha256 that the caller got from somebody it trusts; a delta itself is not trusted. docs/delta.md
gives the format to the byte.
"""

from edgekit.delta.form import DeltaError, Head, NotSmaller
from edgekit.delta.making import DeltaReport, make
from edgekit.delta.rebuild import apply, read_head

__all__ = ["DeltaError", "DeltaReport", "Head", "NotSmaller", "apply", "make", "read_head"]
