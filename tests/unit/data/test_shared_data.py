"""Real data in their own formats, by configuration only, through all data stages: the counts add up."""

import json

import pytest
from tiny import lists_of

from post_training.config import resolve
from post_training.core.stages import STAGES
from post_training.plan import make_plan

ANNOTATORS = ["annotator1", "annotator2", "annotator3"]
PREDICTIONS = [f"prediction {n}" for n in (1, 2, 3, 4)]
# Name -> file, its rows, what `transform:` says, and why rows of it are not used.
CONVERSATIONS = {
    "gsm8k": ("gsm8k_train.jsonl", 3500, "question_answer", {}),
    "gpteacher": ("gpteacher_roleplay_alpaca.jsonl", 2608, "alpaca", {}),
    "taskmaster": ("taskmaster4_dialogs.jsonl", 500, "task_dialogue", {}),
    "fastchat": ("fastchat_identity_sharegpt.jsonl", 400, "sharegpt", {}),
    "glaive": ("glaive_toolcall_en_sharegpt.jsonl", 249, "sharegpt", {}),
    "seal": ("seal_tools_sharegpt.jsonl", 350, "sharegpt", {}),
    "tau": ("tau_bench_airline_openai.jsonl", 132, {"name": "messages", "column": "traj"}, {}),
    "oasst": (
        "oasst1_en_messages_flat.jsonl",
        1327,
        {"name": "message_tree", "paths": "all"},
        {"no_answer": 180, "deleted": 29, "no_parent": 2},
    ),
}
PREFERENCES = {
    "hh": ("hh_rlhf_harmless_base.jsonl", 1796, "preference_transcripts", {"role_order": 8, "empty_content": 2}),
    "ultrafeedback": ("ultrafeedback_binarized.parquet", 1000, "preference", {"identical_pair": 4, "empty_content": 3}),
    "pandalm": (
        "pandalm_annotators.jsonl",
        703,
        {"name": "preference_votes", "prompt": ["instruction", "input"], "votes": ANNOTATORS},
        {"tie": 84, "empty_content": 46},
    ),
    "dpo_en": ("llamafactory_dpo_en_sharegpt.jsonl", 248, {"name": "preference", "prompt": "conversations"}, {}),
    "finegrained": (
        "finegrained_qa_4way.jsonl",
        280,
        {
            "name": "preference_ranking",
            "prompt": "{passages}\n\n{question}",
            "answers": PREDICTIONS,
            "preferences": "preference",
            "choice": "all",
        },
        {"tie": 2},
    ),
    "oasst_pairs": (
        "../sft/oasst1_en_messages_flat.jsonl",
        1327,
        {"name": "message_tree", "pairs": "best_worst"},
        {"no_pair": 227, "no_answer": 180, "deleted": 29, "no_parent": 2, "identical_pair": 1},
    ),
}


@pytest.fixture(scope="module")
def made(shared, bpe_folder, tmp_path_factory):
    """The manifests of one pipeline's data stages, run one after the other as the rules would: (kind, dataset) -> it."""
    base = tmp_path_factory.mktemp("outputs")

    def datasets(cases, folder):
        return [
            {"name": name, "path": str(shared / folder / file), "transform": transform}
            for name, (file, _, transform, _) in cases.items()
        ]

    plan = make_plan(
        resolve(
            {
                "method": "dpo",
                "model": {"name_or_path": str(bpe_folder)},
                "training": {"max_steps": 1},
                "paths": {"output_base": str(base)},
                "data": {"datasets": datasets(CONVERSATIONS, "sft"), "max_reject_fraction": 0.1, "num_proc": 1},
                "sft": {"max_seq_length": 4096},
                "dpo": {"max_seq_length": 4096, "data": {"datasets": datasets(PREFERENCES, "dpo")}},
            }
        )
    )
    (model,) = plan.stages["download_model"].values()  # without weights, which no data stage looks at
    (base / model.manifest).parent.mkdir(parents=True)
    (base / model.manifest).write_text(json.dumps({"fingerprint": model.fingerprint, "folder": str(bpe_folder)}))
    found = {}
    for kind in ("download", "transform", "tokenize", "mix"):
        for stage in plan.stages[kind].values():
            task = stage.task(base)
            STAGES[kind].run(task)
            found[kind, stage.label] = json.loads(task.output.read_text()) | {"path": task.output}
    return found


@pytest.mark.parametrize("name", [*CONVERSATIONS, *PREFERENCES])
def test_every_row_is_accounted_for(made, name):
    _, rows, _, reasons = (CONVERSATIONS | PREFERENCES)[name]
    transformed, tokenized = made["transform", name], made["tokenize", name]
    assert transformed["rows_in"] == rows == transformed["rows_out"] + sum(transformed["dropped"].values())
    assert transformed["dropped"] == reasons
    folder = transformed["path"].parent
    lines, rejects = ((folder / f"{part}.jsonl").read_bytes().count(b"\n") for part in ("rows", "rejects"))
    assert lines == transformed["examples"] == tokenized["rows_in"]
    assert rejects == sum(transformed["dropped"].values()) + sum(transformed["dropped_examples"].values())
    assert tokenized["rows_in"] == tokenized["rows_out"] + sum(tokenized["dropped"].values())
    assert tokenized["rows_out"] > 0.9 * tokenized["rows_in"]


def test_conversations_are_packed_and_pairs_are_kept_apart(made):
    for method, cases in (("sft", CONVERSATIONS), ("dpo", PREFERENCES)):
        mixed = made["mix", method]
        assert mixed["rows_in"] == sum(made["tokenize", name]["rows_out"] for name in cases)
        assert mixed["rows_in"] == mixed["documents"] + sum(mixed["dropped"].values())
        rows = lists_of(mixed["path"])
        assert len(rows) == mixed["rows_out"] > 0
        if method == "sft":
            assert sum(len(row["seq_lengths"]) for row in rows) == mixed["documents"]
            assert sum(sum(row["seq_lengths"]) for row in rows) == mixed["tokens"]


def test_tools_and_calls_reach_the_rows(made):
    rows = [json.loads(line) for line in (made["transform", "glaive"]["path"].parent / "rows.jsonl").open("rb")]
    assert sum("tools" in row for row in rows) == 165
    assert sum("tool_calls" in turn for row in rows for turn in row["messages"]) == 178
    assert sum(turn["role"] == "tool" for row in rows for turn in row["messages"]) == 178
    assert made["transform", "tau"]["trimmed"] == {"rows": 132, "turns": 132}
    assert made["transform", "taskmaster"]["trimmed"] == {"rows": 9, "turns": 9}
