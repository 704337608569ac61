"""The device's doctor: what this board has against what its profile says, and what a change breaks.

`facts` reads, `checks` and `ties` judge (pure functions of facts), `examination` brings them
together. Nothing is written, started, compiled or fetched.
"""
