"""One main loop per file; what runs in a process of its own, and what starts and watches it."""
