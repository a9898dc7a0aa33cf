"""TRL's SFTTrainer on tokenised rows."""

from trl.trainer.sft_trainer import SFTTrainer

from post_training.data.collate import OnRows


class SFT(OnRows, SFTTrainer):
    """On rows of `input_ids`, `labels` and, when packed, `seq_lengths`."""
