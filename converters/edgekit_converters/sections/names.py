"""Names of classes, where the data names them."""

from __future__ import annotations

from edgekit_converters.workshop import Workshop


def class_name(label: int, workshop: Workshop) -> str:
    """What people call a class, or its number."""
    names = workshop.data.names if workshop.data else ()
    return names[label] if 0 <= label < len(names) else f"class {label}"
