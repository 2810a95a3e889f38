"""One file per command: parse arguments, print results, choose the exit code."""
