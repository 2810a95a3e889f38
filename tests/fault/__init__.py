"""Faults injected into the whole program: real processes, real filesystem, real store, real signals."""
