"""`python -m ddaebm`."""

from ddaebm.cli import main

if __name__ == "__main__":
    main()
