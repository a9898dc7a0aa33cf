"""What DeepSpeed 0.19.8 gets wrong when it loads a universal checkpoint into ZeRO-3."""

from typing import Any


def repair_loading() -> None:
    """Give each parameter group its own step count and its own settings; tests/training/test_devices.py holds it to that.

    DeepSpeed puts one tensor as the step of all groups: AdamW counts it up once a group, and corrects its moments for a
    step that is far too high. And it gives every group the settings of the first, with which weight decay
    would reach biases and norms, or nothing.
    """
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    load = Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3
    if getattr(load, "repaired", False):
        return

    def repaired(self: Any, checkpoint_dir: str) -> None:
        settings = [
            {key: group[key] for key in group if key not in ("params", "lr")} for group in self.optimizer.param_groups
        ]
        load(self, checkpoint_dir)
        for group, kept in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(kept)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone() if hasattr(state["step"], "clone") else state["step"]

    repaired.repaired = True  # type: ignore[attr-defined]
    Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3 = repaired
