"""Tests of the processes, with real ones."""
