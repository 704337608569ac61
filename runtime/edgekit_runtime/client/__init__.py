"""Client: inference by the server of this machine, through memory that both see.

    with Client("/run/edgekit/bell.sock") as client:
        model = client.open("mlp", rows=32)
        model.inputs["x"][:] = samples
        outputs = model.run()

Inputs and outputs are numpy views of shared memory: nothing is copied, and a few bytes are sent.
No engine is imported here. docs/client.md is the reference.
"""

from edgekit_runtime.client.client import Client
from edgekit_runtime.client.line import Gone
from edgekit_runtime.client.model import AnsweredBy, Model, Slot
from edgekit_runtime.doorbell import Changed

__all__ = ["AnsweredBy", "Changed", "Client", "Gone", "Model", "Slot"]
