"""Run b2s as ``python -m b2s``."""

from b2s.cli.main import main

if __name__ == "__main__":
    main()
