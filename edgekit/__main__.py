"""`python -m edgekit`: the command line, for callers that know an interpreter and no PATH."""

from edgekit.cli import main

if __name__ == "__main__":
    main()
