"""`python -m pit`: the same as the command `pit`."""

from pit.cli import main

if __name__ == "__main__":
    main()
