"""`python -m recsys`: the program where no script of that name is on the path."""

from recsys.cli import main

if __name__ == "__main__":  # the tests import every module
    main()
