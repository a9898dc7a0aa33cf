"""Where a result comes from: manifests followed back to their sources, checked against the files, and compared."""

from post_training.lineage.collect import Lineage, Stage, collect
from post_training.lineage.verify import verify

__all__ = ["Lineage", "Stage", "collect", "verify"]
