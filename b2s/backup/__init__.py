"""The order of steps of one backup run."""
