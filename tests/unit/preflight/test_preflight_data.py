"""Checks of the data: each fires on a mix that deserves it, and is silent on a sound one."""

import json

import pytest

from post_training.preflight import data

SHARE = "data.trained_share"


def entry(tokens, trained):
    return {"table": [{"name": "d", "tokens": tokens, "trained_tokens": trained, "rows_in": 1000}]}


def test_a_sound_mix_is_silent(subject_of, verdicts):
    for method in ("sft", "dpo", "kto"):
        contradictory = None if method == "sft" else {"rows": 0, "examples": []}
        assert set(verdicts(data.checks(subject_of(method, mix={"contradictory": contradictory}))).values()) == {"ok"}


@pytest.mark.parametrize(
    "name,mix,verdict,said",
    [
        (SHARE, entry(1000, 990), "failure", "d: 99.0% of 1,000 tokens"),
        (SHARE, entry(1000, 0), "failure", "d: 0.0%"),
        (SHARE, entry(1000, 5), "warning", "d: 0.5%"),
        ("data.rows_without_trained_token", {"dropped": {"no_trained_token": 30}}, "warning", "30 rows (3.0%)"),
        ("data.rows_without_trained_token", {"dropped": {"no_trained_token": 600}}, "failure", "600 rows"),
        ("data.longest_row", {"longest_document": 4097}, "failure", "4,097 tokens; the model has 4,096 positions"),
        ("data.dropped", {"dropped": {"too_long": 90}}, "warning", "90 of 1,000 rows (9.0%): too_long 90"),
        ("data.duplicates_of_held_out", {"held_out": {"rows": 9, "duplicates": 20}}, "warning", "20 training rows"),
    ],
)
def test_fires(subject_of, name, mix, verdict, said):
    found = {check.name: check for check in data.checks(subject_of(mix=mix))}[name]
    assert (found.verdict, bool(found.remedy)) == (verdict, True)
    assert said in found.value


def test_all_tokens_are_trained_where_that_is_asked_for(subject_of, verdicts):
    assert verdicts(data.checks(subject_of(mix=entry(1000, 1000), sft__train_on="all")))[SHARE] == "ok"
    assert verdicts(data.checks(subject_of("dpo", mix=entry(1000, 990))))[SHARE] == "ok"


def test_bounds_are_keys(subject_of, verdicts):
    assert verdicts(data.checks(subject_of(mix=entry(1000, 5), preflight__min_trained_share=0.001)))[SHARE] == "ok"


def test_contradictory_pairs(subject_of):
    mix = {"contradictory": {"rows": 40, "examples": ["p row 1 and p row 7"]}}
    found = {check.name: check for check in data.checks(subject_of("dpo", mix=mix))}["data.contradictory_pairs"]
    assert found.verdict == "warning" and "40 rows (4.0%), such as p row 1 and p row 7" in found.value


def test_drops_of_all_stages_are_added_and_choices_are_not(subject_of, tmp_path):
    """From the source to the mix: 100 rows of which a transform skips 30 by choice and rejects 4."""
    base = tmp_path / "data"
    transformed = {"rows_in": 1000, "dropped": {"skipped": 30, "empty": 4}, "skipped": {"skipped": 30}}
    tokenized = {
        "dropped": {"no_trained_token": 2},
        "inputs": {"rows": {"path": "outputs/data/transformed/d/manifest.json"}},
    }
    for name, facts in (("transformed", transformed), ("tokenized", tokenized)):
        (base / name / "d").mkdir(parents=True)
        (base / name / "d" / "manifest.json").write_text(json.dumps(facts))
    # As recorded before the outputs were moved here.
    mix = {"inputs": {"d": {"path": "outputs/data/tokenized/d/manifest.json"}}, "dropped": {"too_long": 1}}
    assert data.dropped(subject_of(mix=mix)) == {"too_long": 1, "no_trained_token": 2, "empty": 4}
