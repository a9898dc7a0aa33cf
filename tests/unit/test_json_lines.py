from post_training.core import json_lines


def test_a_torn_line_spoils_nothing_but_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    assert list(json_lines.read(path)) == []
    json_lines.append(path, {"n": 1})
    with path.open("ab") as file:
        file.write(b'{"n": 2, "te')
    json_lines.append(path, {"n": 3})
    json_lines.append(path, {"n": 4})
    assert [line["n"] for line in json_lines.read(path)] == [1, 3, 4]


def test_only_a_line_feed_ends_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    text = "one\u2028two\u2029three\u0085four"
    path.write_text(f'{{"text": "{text}"}}\n', encoding="utf-8")
    assert list(json_lines.read(path)) == [{"text": text}]
