"""Serving: Open Inference Protocol v2 over HTTP, where a request costs what its model costs.

A socket's bytes are received where the engine will read them (`connection`), their head is parsed
once per distinct head (`http`), tensors are views of the received bytes (`v2`), and a model that is
fast enough runs on the event loop itself, else on a thread that owns its session (`scheduler`).
`models` is the table of what is served, `server` listens.
"""
