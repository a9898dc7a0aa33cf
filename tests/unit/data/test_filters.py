"""Filters against brute force, and what became of every row."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import task

from post_training.core.errors import DataError
from post_training.data.filters import duplicates, stage
from post_training.data.filters.contamination import EvaluationTexts
from post_training.data.filters.text import jaccard, shingles, words

OFF = {
    "deduplicate": None,
    "near_threshold": 0.8,
    "decontaminate": False,
    "ngram_words": 8,
    "ngram_overlap": 0.5,
    "languages": [],
    "min_language_confidence": 0.8,
    "min_characters": None,
    "max_characters": None,
    "min_turns": None,
    "max_turns": None,
}


def said(question, answer="yes"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair(question, chosen, rejected):
    answers = {"chosen": chosen, "rejected": rejected}
    sides = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
    return {"prompt": [{"role": "user", "content": question}], **sides}


def rows_stage(folder, rows):
    folder.mkdir(parents=True)
    lines = [json.dumps({"row": number, **row}) + "\n" for number, row in enumerate(rows)]
    (folder / "rows.jsonl").write_text("".join(lines))
    (folder / "manifest.json").write_text(json.dumps({"stage": "transform", "examples": len(rows)}))
    return folder / "manifest.json"


def filtered(folder, rows, earlier=(), evaluation=(), num_proc=1, files=(), **config):
    """The manifest, the lines that stay and those that are removed."""
    inputs = {"rows": rows_stage(folder / "rows", rows)}
    inputs |= {f"earlier:{name}": path for name, path in dict(earlier).items()}
    inputs |= {f"evaluation:{name}": path for name, path in dict(evaluation).items()}
    output = folder / "filtered" / "manifest.json"
    runtime = {"num_proc": num_proc, "files": [str(path) for path in files]}
    stage.run(task("filter", OFF | config, runtime, inputs, output))
    manifest = json.loads(output.read_text())
    kept, removed = (
        [json.loads(line) for line in (output.parent / name).read_text().splitlines()]
        for name in ("rows.jsonl", "removed.jsonl")
    )
    assert manifest["rows_in"] == len(rows) == len(kept) + len(removed)
    assert manifest["rows_out"] == manifest["examples"] == len(kept)
    assert sum(manifest["dropped"].values()) == len(removed)
    assert sorted(row["row"] for row in kept + removed) == list(range(len(rows)))
    return manifest, kept, removed


def sentence(random_, count=30, vocabulary=2000):
    return " ".join(f"w{random_.randrange(vocabulary)}" for _ in range(count))


@pytest.mark.parametrize("make", [lambda text: said(text), lambda text: pair(text, "good", "bad")])
def test_the_first_of_equal_rows_stays(tmp_path, make):
    random_ = random.Random(0)
    rows = [make(f"question {random_.randrange(40)}") for _ in range(200)]
    _, kept, removed = filtered(tmp_path, rows, deduplicate="exact")
    first = {json.dumps(row): number for number, row in reversed(list(enumerate(rows)))}
    assert [row["row"] for row in kept] == sorted(first.values())
    for entry in removed:
        assert entry["reason"] == "exact_duplicate"
        assert entry["partner"] == {"row": first[json.dumps(rows[entry["row"]])]}


def test_near_duplicates_are_those_of_all_comparisons(tmp_path):
    random_ = random.Random(1)
    rows = []
    for _ in range(60):
        text = sentence(random_, 60).split()
        rows.append(said(" ".join(text)))
        for changes in (1, 2, 3, 5, 8):
            other = list(text)
            for place in random_.sample(range(60), changes):
                other[place] = "other"
            rows.append(said(" ".join(other)))
    random_.shuffle(rows)
    _, kept, removed = filtered(tmp_path, rows, deduplicate="near", near_threshold=0.7)
    sets = [shingles(row) for row in rows]
    expected, staying = {}, []
    for number, own in enumerate(sets):
        alike = [other for other in staying if jaccard(own, sets[other]) >= 0.7]
        if alike:
            expected[number] = alike
        else:
            staying.append(number)
    found = {entry["row"]: entry["partner"]["row"] for entry in removed}
    assert 60 < len(expected) < 240
    assert len(found.keys() & expected.keys()) >= 0.98 * len(expected)  # recall
    stays = {row["row"] for row in kept}
    for number, partner in found.items():  # precision: what is removed repeats a row that stays
        assert partner in stays and partner < number
        assert jaccard(sets[number], sets[partner]) >= 0.7


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_miss_few_pairs_at_the_threshold(threshold):
    number, length = duplicates.bands(threshold)
    assert number * length <= duplicates.PERMUTATIONS
    assert (1 - threshold**length) ** number <= 0.01


def test_minhash_estimates_jaccard():
    random_ = random.Random(3)
    words_ = [str(n) for n in range(300)]
    one, other = set(words_[:200]), set(words_[100:])
    keys = duplicates.band_keys([one, other, set(random_.sample(sorted(one), 200))], 0.3)
    assert (keys[0] == keys[2]).all()  # whatever the order
    length = duplicates.bands(0.3)[1]
    assert abs((keys[0] == keys[1]).mean() - (1 / 3) ** length) < 0.15


def test_earlier_datasets_keep_their_rows(tmp_path):
    random_ = random.Random(2)
    texts = [sentence(random_) for _ in range(20)]
    filtered(tmp_path / "a", [said(text) for text in texts[:10]], deduplicate="near")
    earlier = {"a": tmp_path / "a" / "filtered" / "manifest.json"}
    changed = texts[3].split()
    changed[0] = "other"
    again = [said(texts[5]), said(" ".join(changed)), *(said(text) for text in texts[10:])]
    manifest, kept, removed = filtered(tmp_path / "b", again, earlier, deduplicate="near")
    assert [(entry["reason"], entry["partner"]) for entry in removed] == [
        ("exact_duplicate", {"dataset": "a", "row": 5}),
        ("near_duplicate", {"dataset": "a", "row": 3}),
    ]
    assert [row["row"] for row in kept] == list(range(2, 12))
    assert manifest["partners"] == {"exact_duplicate": {"a": 1}, "near_duplicate": {"a": 1}}


def test_exchanged_answers_and_other_labels_are_no_duplicates(tmp_path):
    text = " ".join(map(str, range(30)))
    pairs = [pair(text, "a b c d e f", "g h i j k l"), pair(text, "g h i j k l", "a b c d e f")]
    assert filtered(tmp_path / "pairs", pairs, deduplicate="near")[0]["dropped"] == {}
    judged = [
        {"prompt": said(text)["messages"][:1], "completion": said("", text)["messages"][1:], "label": label}
        for label in (True, False)
    ]
    assert filtered(tmp_path / "judged", judged, deduplicate="near")[0]["dropped"] == {}


def contaminated(row, texts, size, overlap):
    """Whether a row is to be removed, by its definition."""

    def grams(found):
        return {tuple(found[start : start + size]) for start in range(len(found) - size + 1)}

    own = set().union(*(grams(words(turn["content"])) for turn in row["messages"]))
    for text in texts:
        found = words(text)
        covered = set()
        for start in range(len(found) - size + 1):
            if tuple(found[start : start + size]) in own:
                covered.update(range(start, start + size))
        if len(found) >= size and len(covered) / len(found) > overlap:
            return True
    return False


@given(st.integers(0, 10**6), st.sampled_from([2, 3, 8]), st.sampled_from([0.0, 0.5, 0.9]))
def test_contamination_is_that_of_its_definition(seed, size, overlap):
    random_ = random.Random(seed)
    texts = [sentence(random_, random_.randrange(1, 25), vocabulary=6) for _ in range(4)]
    index = EvaluationTexts((("e", n, text) for n, text in enumerate(texts)), size, overlap)
    for _ in range(5):
        text = sentence(random_, random_.randrange(0, 25), vocabulary=7)
        if random_.random() < 0.5:
            text += " " + texts[0]
        row = said(text, sentence(random_, 5, vocabulary=7))
        assert (index.match(row) is not None) == contaminated(row, texts, size, overlap)


def test_contaminated_rows_name_what_they_give_away(tmp_path):
    question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May."
    held = rows_stage(tmp_path / "held", [said("too short"), said(question)])
    more = tmp_path / "benchmark.csv"
    more.write_text("id,text\n1,the quick brown fox jumps over the lazy dog near the river bank\n")
    rows = [
        said("Nothing of the kind is asked here, only how many clips there are."),
        said(f"Please solve this: {question.upper()} How many?"),
        pair("Say it", "The quick, brown fox jumps over the lazy dog near the river", "No"),
    ]
    manifest, _kept, removed = filtered(tmp_path / "x", rows, (), {"held": held}, files=[more], decontaminate=True)
    assert [entry["partner"] for entry in removed] == [{"dataset": "held", "row": 1}, {"dataset": str(more), "row": 1}]
    assert manifest["evaluation_texts"]["held"] == {"compared": 1, "too_short": 3}


def test_languages_and_lengths(tmp_path):
    rows = [
        said("What is the longest river of this continent, and where does it begin?"),
        said("Welcher Fluss ist der längste dieses Kontinents, und wo entspringt er?", "Das ist die Wolga."),
        said("ok"),
        said("x = [i ** 2 for i in range(10)]\nprint(x[1:3], {1: 2})"),
        said("Why? " * 100),
        {"messages": said("Is that so, and why would it be?")["messages"] * 3},
    ]
    settings = {"languages": ["en"], "min_characters": 6, "max_characters": 400, "max_turns": 4}
    manifest, _kept, removed = filtered(tmp_path, rows, **settings)
    reasons = {entry["row"]: entry["reason"] for entry in removed}
    assert reasons == {1: "other_language", 2: "too_few_characters", 4: "too_many_characters", 5: "too_many_turns"}
    assert manifest["removed"]["other_language"][0]["detail"].startswith("de, ")
    with pytest.raises(DataError, match="found 'xx'"):
        filtered(tmp_path / "unknown", rows, languages=["xx"])
    with pytest.raises(DataError, match="all 6 rows are removed"):
        filtered(tmp_path / "none", rows, min_characters=10_000)


def test_processes_change_no_byte(tmp_path):
    random_ = random.Random(4)
    rows = [said(sentence(random_, 40), sentence(random_, 40)) for _ in range(1500)]
    rows += random_.choices(rows, k=300)
    held = rows_stage(tmp_path / "held", rows[5:8])
    settings = {"deduplicate": "near", "decontaminate": True, "min_characters": 30}
    files = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        manifest, *_ = filtered(folder, rows, (), {"held": held}, num_proc=processes, **settings)
        files.append(manifest["files"])
    assert files[0] == files[1]


texts = st.text("ab .é日\n", max_size=12)


@given(
    st.lists(st.tuples(texts, texts), min_size=1, max_size=12),
    st.sampled_from([None, "exact", "near"]),
    st.sampled_from([None, 2]),
    st.sampled_from([None, 20]),
)
def test_every_row_is_accounted_for(tmp_path_factory, pairs, deduplicate, least, most):
    settings = {"deduplicate": deduplicate, "min_characters": least, "max_characters": most}
    folder = tmp_path_factory.mktemp("filters")
    try:
        _, kept, _removed = filtered(folder, [said(*texts) for texts in pairs], **settings)
    except DataError as error:
        assert "rows are removed" in str(error)
        return
    keys = np.load(folder / "filtered" / "keys.npy")
    lines = (folder / "filtered" / "rows.jsonl").read_bytes()
    assert [json.loads(lines[start:].split(b"\n")[0])["row"] for start in keys[:, -1]] == [row["row"] for row in kept]
