"""``python -m morphir`` is the command line."""

from morphir.cli import main

if __name__ == "__main__":
    main()
