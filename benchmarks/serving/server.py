"""The server that is measured: serves the unpacked bundles it is given and prints its port.

For each line on its standard input it answers with one line of JSON: the CPU seconds it has used.
The line `run MODEL N` first runs the model N times in process, which is what served is compared to.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from pathlib import Path

from edgekit.bundle import GOLDEN_INPUTS, Bundle
from edgekit_runtime.engines.batches import iter_batches
from edgekit_runtime.serving.address import Tcp
from edgekit_runtime.serving.models import Models, open_variant
from edgekit_runtime.serving.server import Server, new_event_loop


async def serve(bundles: list[Bundle]) -> None:
    models = Models()
    direct = {}
    for bundle in bundles:
        served = models.load(bundle, verified_by=None)
        models.activate(served)
        session = open_variant(bundle, served.variant)
        samples = bundle.tensors(GOLDEN_INPUTS)
        direct[served.name] = session, next(iter_batches(session.inputs, samples, size=1))
    server = Server(models, listen=[Tcp("127.0.0.1", 0)])
    await server.start()
    # As `edgekit run` does.
    gc.collect()
    gc.freeze()
    address = server.addresses[0]
    assert isinstance(address, Tcp)
    plans = {m.name: [m.plan.inline, m.plan.max_batch, m.plan.cost_us] for m in models.served()}
    print(json.dumps({"port": address.port, "plans": plans}), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        words = line.split()
        if words[0] == "run":
            session, inputs = direct[words[1]]
            start = time.process_time()
            for _ in range(int(words[2])):
                session.run(inputs)
            print(json.dumps(time.process_time() - start), flush=True)
        else:
            print(json.dumps(time.process_time()), flush=True)
    await server.close()


if __name__ == "__main__":
    folders = [Bundle.open(Path(name)) for name in sys.argv[1:]]
    event_loop = new_event_loop()
    event_loop.run_until_complete(serve(folders))
