from post_training.data.dataset_of_row import origins
from post_training.data.view import open_rows


def test_documents_of_a_packed_row_are_found_in_their_shards(sft_rows):
    rows = open_rows(sft_rows)
    told = [origins(rows, index) for index in range(3)]
    assert [len(documents) for documents in told] == [len(rows[index]["seq_lengths"]) for index in range(3)]
    assert [text for documents in told for text in documents] == [f"tokens row {n}" for n in range(sum(map(len, told)))]


def test_pairs_too(dpo_rows):
    assert origins(open_rows(dpo_rows), 5) == ["tokens row 5"]
