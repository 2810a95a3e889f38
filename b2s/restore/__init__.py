"""The order of steps of one restore."""
