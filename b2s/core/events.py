"""The names of the log events: past tense, for ever the same, because dashboards count them."""

from __future__ import annotations

from typing import Final

LOG_SCHEMA: Final = 1  # docs/log-schema.json; a line that does not fit it any more makes it 2

RUN_STARTED: Final = "run_started"
RUN_FINISHED: Final = "run_finished"  # always the last event of a run
PROCESS_STARTED: Final = "process_started"
CHILD_FAILED: Final = "child_failed"  # a child process ends by an error of its own

LOCK_CONTENDED: Final = "lock_contended"
LOCK_STALE_REMOVED: Final = "lock_stale_removed"
STATE_REBUILT: Final = "state_rebuilt"
PLAN_DECIDED: Final = "plan_decided"
STORE_PROBED: Final = "store_probed"
ORPHAN_REMOVED: Final = "orphan_removed"

SNAPSHOT_CREATED: Final = "snapshot_created"
SNAPSHOT_PRUNED: Final = "snapshot_pruned"
SEND_STARTED: Final = "send_started"
SEND_FAILED: Final = "send_failed"

CHUNK_COMPLETED: Final = "chunk_completed"
PART_RETRIED: Final = "part_retried"
UPLOADER_DIED: Final = "uploader_died"
WORKER_STALLED: Final = "worker_stalled"
BACKUP_RESUMED: Final = "backup_resumed"
MANIFEST_COMMITTED: Final = "manifest_committed"
BACKUP_FAILED: Final = "backup_failed"
BACKUP_METRICS: Final = "backup_metrics"
METRICS_FAILED: Final = "metrics_failed"  # metrics.textfile could not be written; the backup is not affected
PING_FAILED: Final = "ping_failed"  # notify.ping_url did not answer; the backup is not affected

RETRIEVAL_REQUESTED: Final = "retrieval_requested"
RETRIEVAL_WAITING: Final = "retrieval_waiting"
RETRIEVAL_READY: Final = "retrieval_ready"
RETRIEVAL_EXTENDED: Final = "retrieval_extended"
RETRIEVAL_EXPIRES: Final = "retrieval_expires"
DOWNLOADER_DIED: Final = "downloader_died"
RESTORE_PLANNED: Final = "restore_planned"
BACKUP_RECEIVED: Final = "backup_received"
RESTORE_CREATED: Final = "restore_created"
RESTORE_VERIFIED: Final = "restore_verified"
NESTED_ABSENT: Final = "nested_subvolumes_absent"
VERIFY_FOUND: Final = "verify_found"
ORPHAN_KEPT: Final = "orphan_kept"
RECEIVE_FAILED: Final = "receive_failed"
RESTORE_FAILED: Final = "restore_failed"
RESTORE_METRICS: Final = "restore_metrics"
