"""A bench on a board that is reached over SSH.

Top down: `remote` is the path, `ssh` the link, `agent` what the board runs before it has anything
of ours, `ship` what is carried, `there` the benchmark on the board, `conditions` heat, clocks and
throttling around it, `figures` what comes back, `report` where that goes.
"""
