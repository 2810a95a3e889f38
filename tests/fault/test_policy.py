"""The policy of docs/credentials.md allows what b2s calls, and nothing that it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.fault.conftest import MakeRig
from tests.fault.harness import MIB, SEGMENT, Rig
from tests.parts import workspace

PAGE = (Path(__file__).parents[2] / "docs/credentials.md").read_text()

# Source: AWS Service Authorization Reference, Amazon S3, and "Required permissions for Amazon S3 API operations"
# (read 2026-11). CompleteMultipartUpload and UploadPart are s3:PutObject, HeadObject is s3:GetObject.
ACTIONS = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "ListParts": "s3:ListMultipartUploadParts",
    "DeleteObject": "s3:DeleteObject",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
}


def called(rig: Rig) -> set[str]:
    """Return the actions of all calls the proxy saw, and see that none left the bucket and the prefix."""
    calls = rig.proxy.history()
    assert {call.request.bucket for call in calls} == {rig.bucket}
    assert all(call.key.startswith(f"{rig.prefix}/") for call in calls if call.key)
    return {ACTIONS[call.operation] for call in calls}


def test_policy_is_what_is_called(make_rig: MakeRig) -> None:
    """An interrupted full, its resume, an incremental, every command that looks, and a restore."""
    rig = make_rig(data_bytes=22 * MIB, s3={"chunk_size": 4 * SEGMENT, "max_bandwidth": SEGMENT})
    run = rig.start()
    workspace.poll(lambda: len(rig.proxy.history("UploadPart", key="/chunks/")) >= 2, seconds=60, what="two parts")
    run.kill()
    rig.write_config(s3={"max_bandwidth": None})
    rig.run_clean()
    rig.fill(1 * MIB)
    rig.run_clean("--once")
    for command, *arguments in (
        ("plan",),
        ("status",),
        ("list",),
        ("verify", "--data"),
        ("restore", "--source", "data", "--target", str(rig.filesystem.path / "restored")),
    ):
        done = rig.run(*arguments, command=command)
        assert done.process.returncode == 0, done.tail()
    (policy,) = re.findall(r"```json\n(.*?)```", PAGE, flags=re.DOTALL)
    allowed = {action for statement in json.loads(policy)["Statement"] for action in statement["Action"]}
    assert called(rig) == allowed
    assert rig.run(command="doctor").process.returncode == 0
    table = PAGE.partition("| also needed for |")[2]
    more = set(re.findall(r"`(s3:\w+)`", table.partition("\n\n")[0])) - {"s3:RestoreObject"}
    assert called(rig) == allowed | more
