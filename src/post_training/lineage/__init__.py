"""Where a result comes from: manifests followed back to their sources, checked against the files, and compared. Light."""

from post_training.lineage.collect import collect
from post_training.lineage.verify import verify

__all__ = ["collect", "verify"]
