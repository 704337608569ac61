"""Process workers: a model in a child process, whose crash, hang or hunger ends nobody else.

Parent and child share one stretch of memory, an `arena`: the socket receives a request's body into
it, the child's engine reads it there and its outputs are written there. What else there is to say
are some bytes on a `SOCK_SEQPACKET` socket pair, the doorbell (`messages`, `calls`). The child
(`child`) is a fresh interpreter that imports its engine and little else; the parent imports none.
`session` drives a worker with blocking calls while a model loads, `runner` from the event loop.
"""
