"""The bucket: everything b2s asks of S3, in one class made of four small ones."""

from __future__ import annotations

from b2s.adapters.s3_listing import ListingCalls
from b2s.adapters.s3_objects import ObjectCalls


class Bucket(ObjectCalls, ListingCalls):
    """One bucket of one store.

    Keys are full keys, the prefix included. Every method tries again through an outage of up to `s3.retry_for`
    and raises only errors of `b2s.errors`. Make one with `Bucket.connect` in the process that uses it, close it
    at the end; it is not safe for several threads.

    `S3Calls` holds the connection, `MultipartCalls` stores chunks, `ObjectCalls` reads objects and writes manifests,
    `ListingCalls` lists.
    """
