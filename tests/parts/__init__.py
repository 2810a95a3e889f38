"""Real parts the tests run on: loop filesystems, S3 servers, a fault proxy, nasty trees, invariant checks."""
