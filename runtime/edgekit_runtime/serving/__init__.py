"""Serving: Open Inference Protocol v2, where a request costs what its model costs.

From the socket inwards: `server` listens, `access` says who may ask, `connection` receives a body
where the engine will read it, `http` and `v2` read it, `lane` remembers what came before, `infer`
makes a job of it. `scheduler` orders jobs (`queue`), chooses the variant (`ladder`) and refuses what
cannot be in time. A `rung` is an open variant, `runners` and `process` are where it runs. `models` is
the table of what is served, `served` one line of it, `opener` opens variants and `keeper` brings
them back. Other ways in: `grpc`, `bell` (clients in shared memory), `shm` (regions), `pictures`.
"""
