"""Imported last by the forkserver: everything its children have in common is ready, and stays shared.

A child that collects garbage touches every object, and each page it touches becomes its own. Frozen objects are left
alone: that saves every child memory and time.
"""

from __future__ import annotations

import gc

from b2s.adapters import logs, s3_client

logs.get_logger()  # imports structlog
s3_client.preload()
gc.freeze()
