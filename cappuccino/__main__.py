"""`python -m cappuccino`: the command line, as torchrun and others start it that know modules only."""

from cappuccino.cli import main

if __name__ == "__main__":
    main()
