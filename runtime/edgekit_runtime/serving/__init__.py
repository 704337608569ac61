"""Serving: Open Inference Protocol v2, where a request costs what its model costs.

From the socket inwards: `server` listens, `access` says who may ask, `connection` receives a head,
`body` what follows it where the engine will read it, `http` and `v2` read them, `lane` remembers
what came before, `infer` makes a job of it. `scheduler` runs what waits (`queue`): `admission`
refuses what cannot be in time, `rungs` knows which variants can run and, by the rule of `ladder`,
which one serves; `cascade` asks a better one again, `delivery` hands out what came of a batch,
`retirement` ends a version. A `rung` is one variant, `runners` and `process` are where it runs.
`models` is the table of what is served, `served` one line of it, `opener` opens variants and
`keeper` brings them back. Other ways in: `grpc`, `bell` (clients in shared memory), `shm`
(regions), `pictures`.
"""
