"""What people write without this project: a script with TRL's trainer on rows that are tokenised and packed already.

    python benchmarks/plain_trl.py JOB.json

The job names `method`, `model`, `rows` (an Arrow stream), `arguments` of TRL's configuration, and `log`, to which a
JSON line goes after each step.
"""

import json
import sys


def trainer(job: dict):
    """TRL's trainer, told as its documentation says."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = Dataset.from_file(job["rows"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    if job["method"] == "sft":
        from trl import SFTConfig, SFTTrainer

        args = SFTConfig(**job["arguments"])
        trainer_class = SFTTrainer
    else:
        from trl import DPOConfig, DPOTrainer

        args = DPOConfig(**job["arguments"])

        class trainer_class(DPOTrainer):
            def _prepare_dataset(self, dataset, *_, **__):  # it would look for text
                return dataset

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=job["dtype"], attn_implementation=job["attention"])
    return trainer_class(model=model, args=args, train_dataset=rows, processing_class=tokenizer)


def main() -> None:
    from transformers import TrainerCallback

    with open(sys.argv[1]) as file:
        job = json.load(file)

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                with open(job["log"], "a") as file:
                    file.write(json.dumps({"step": state.global_step, "loss": logs["loss"]}) + "\n")

    made = trainer(job)
    made.add_callback(Log)
    made.train()


if __name__ == "__main__":
    main()
