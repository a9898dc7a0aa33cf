"""Configuration -> stages, their fingerprints and paths: everything the Snakefile needs.

A stage's directory is named by a fingerprint of what decides its content: its own keys, the
fingerprints of its inputs, the text of what it applies, and a version that is raised by hand when
its code changes results. Where and how fast it runs (`runtime`) never enters.
"""

from post_training.plan.graph import Graph, Plan
from post_training.plan.planner import make_graph, make_plan
from post_training.plan.stage import Stage

__all__ = ["Graph", "Plan", "Stage", "make_graph", "make_plan"]
