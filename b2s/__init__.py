"""Back up btrfs subvolumes to S3 and restore them anywhere."""

__version__ = "0.1.0"
