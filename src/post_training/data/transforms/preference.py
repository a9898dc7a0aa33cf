"""Answers to one prompt, some better than others: as pairs, transcripts, votes or rankings."""

import re
from typing import Any

from post_training.data.transforms import Skip, register_transform
from post_training.data.transforms._parts import ranked_pairs, read_json, text
from post_training.data.transforms._values import below, number, spoken


@register_transform("preference", gives="preference")
def preference(
    row: dict[str, Any],
    prompt: str | list[str] = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    system: str | None = None,
    tools: str = "tools",
) -> dict[str, Any]:
    """Prompt and answers as text, messages or ShareGPT turns.

    Answers that are whole conversations are cut at what they share, which becomes the prompt when there is none or when
    it repeats it. `prompt` may be several columns of text or a template, as in `question_answer`; `system` names a
    column with a system prompt.

    >>> preference({"prompt": "1+1?", "chosen": "2", "rejected": "3"})["chosen"]
    [{'role': 'assistant', 'content': '2'}]
    """
    better, worse = spoken(row[chosen], "assistant"), spoken(row[rejected], "assistant")
    asked: list[Any] = []
    if isinstance(prompt, list) or (prompt not in row and "{" in prompt):
        asked = spoken(text(row, prompt), "user")
    elif row.get(prompt) is not None:
        asked = spoken(row[prompt], "user")
    if system is not None and row.get(system):
        asked = [{"role": "system", "content": row[system]}, *asked]
    return _pair(asked, better, worse, {"tools": row[tools]} if row.get(tools) else {})


@register_transform("unpair_preference", gives="unpaired")
def unpair_preference(
    row: dict[str, Any],
    prompt: str | list[str] = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    system: str | None = None,
    tools: str = "tools",
) -> list[dict[str, Any]]:
    """The rows of `preference` for a method that judges answers one by one: chosen is desirable, rejected is not.

    >>> [row["label"] for row in unpair_preference({"prompt": "1+1?", "chosen": "2", "rejected": "3"})]
    [True, False]
    """
    pair = preference(row, prompt, chosen, rejected, system, tools)
    shared = {key: value for key, value in pair.items() if key in ("prompt", "tools")}
    return [{**shared, "completion": pair[side], "label": side == "chosen"} for side in ("chosen", "rejected")]


@register_transform("preference_transcripts", gives="preference")
def preference_transcripts(
    row: dict[str, Any],
    chosen: str = "chosen",
    rejected: str = "rejected",
    user: str = "Human:",
    assistant: str = "Assistant:",
    separator: str = "\n\n",
) -> dict[str, Any]:
    """Two whole conversations, each written as one text, such as HH's; what they share is the prompt.

    A turn begins with `user` or `assistant` at the beginning of the text or after `separator`; white space around a
    turn is not part of it.

    >>> preference_transcripts({"chosen": "\\n\\nHuman: 1+1?\\n\\nAssistant: 2", "rejected": "\\n\\nHuman: 1+1?\\n\\nAssistant: 3"})
    {'prompt': [{'role': 'user', 'content': '1+1?'}], 'chosen': [{'role': 'assistant', 'content': '2'}], 'rejected': [{'role': 'assistant', 'content': '3'}]}
    """
    begins = re.compile(rf"(?:\A|{re.escape(separator)})\s*({re.escape(user)}|{re.escape(assistant)})")
    answers = []
    for column in (chosen, rejected):
        if not isinstance(row[column], str):
            raise KeyError(column) if row[column] is None else TypeError(f"{column} is {type(row[column]).__name__}")
        before, *parts = begins.split(row[column].replace("\r\n", "\n"))
        if before.strip() or not parts:
            raise ValueError(f"not_a_transcript: {column} does not begin with {user!r} or {assistant!r}")
        spoken = zip(parts[0::2], parts[1::2], strict=True)
        answers.append(
            [{"role": "user" if name == user else "assistant", "content": said.strip()} for name, said in spoken]
        )
    return _pair([], answers[0], answers[1], {})


@register_transform("preference_votes", gives="preference")
def preference_votes(
    row: dict[str, Any],
    prompt: str | list[str] = "prompt",
    first: str = "response1",
    second: str = "response2",
    votes: str | list[str] = "winner",
    first_wins: Any = 1,
    second_wins: Any = 2,
    ties: Any = (0,),
) -> dict[str, Any]:
    """Two answers and one vote or several; the verdict with the most votes decides, and a tie gives no pair.

    `prompt`, `first` and `second` are as in `preference`; `votes` names the columns of the votes, whose values mean what
    `first_wins`, `second_wins` and `ties` (each one value or a list) say. Votes for a tie count as such: 0, 0, 1 is a tie.

    >>> preference_votes({"prompt": "1+1?", "response1": "3", "response2": "2", "winner": 2})["chosen"][0]["content"]
    '2'
    """
    columns = votes if isinstance(votes, list) else [votes]
    meanings = {"": ties, second: second_wins, first: first_wins}
    known = {
        str(value): side
        for side, found in meanings.items()
        for value in (found if isinstance(found, list | tuple) else [found])
    }
    counts = {first: 0, second: 0, "": 0}
    for column in columns:
        if row[column] is None:
            raise KeyError(column)
        if str(row[column]) not in known:
            raise ValueError(f"unknown_vote: {column} is {row[column]!r}")
        counts[known[str(row[column])]] += 1
    for better, worse in ((first, second), (second, first)):
        if counts[better] > max(counts[worse], counts[""]):
            return preference(row, prompt, better, worse)
    raise Skip(f"tie: {', '.join(f'{column}={row[column]}' for column in columns)}")


@register_transform("preference_ranking", gives="preference", choices={"choice": ("best_worst", "best_rest", "all")})
def preference_ranking(
    row: dict[str, Any],
    prompt: str | list[str] = "prompt",
    answers: str | list[str] = "completions",
    answer: str = "response",
    scores: str | list[str] | None = None,
    preferences: str | None = None,
    choice: str = "best_worst",
    margin: float = 0.0,
    history: str = "history",
    ranks: str | list[str] | None = None,
) -> list[dict[str, Any]]:
    """Several answers in their order, with scores, or with a verdict on each two of them, as one pair or more.

    `answers` is a column with a list, or a list of columns; where an answer is an object, `answer` is the key of its text
    or messages. `scores` is a key of that object, a column with a list, or a list of columns; a pair's scores differ by
    more than `margin`; `ranks` are the same, with the lowest best. Without either it is `overall_score`, where a row or its answers have that, or else the answers
    are listed from the best to the worst. With `preferences`, a column of verdicts for the pairs (1, 2), (1, 3), ... in
    that order, 1 says that the first is better, 2 the second, 0 neither. `choice` is `best_worst` (one pair a row),
    `best_rest` (the best with each that it beats) or `all`. `history` names a column of earlier turns, `[[user,
    assistant], ...]`, that a row need not have.

    >>> row = {"prompt": "1+1?", "completions": [{"response": "3", "overall_score": 1}, {"response": "2", "overall_score": 9}]}
    >>> preference_ranking(row)[0]["chosen"][0]["content"]
    '2'
    >>> preference_ranking({"prompt": "1+1?", "completions": ["2", "3"]})[0]["rejected"][0]["content"]
    '3'
    """
    found = [row[column] for column in answers] if isinstance(answers, list) else read_json(row[answers], answers)
    if not isinstance(found, list):
        raise KeyError(answers) if found is None else TypeError(f"{answers} is {type(found).__name__}, expected a list")
    texts = [below(one, answer, one) if isinstance(one, dict) else one for one in found]
    in_order = (
        scores is None
        and ranks is None
        and "overall_score" not in row
        and not any(isinstance(one, dict) for one in found)
    )
    if preferences is not None:
        verdicts = _verdicts(row[preferences], len(texts), preferences)
        decided = ranked_pairs(len(texts), lambda i, j: (i, j) in verdicts, choice)
    elif in_order:
        decided = ranked_pairs(len(texts), lambda i, j: i < j, choice)
    else:
        values = _scores(row, found, ranks or scores or "overall_score")
        values = [-value for value in values] if ranks is not None else values
        decided = ranked_pairs(len(texts), lambda i, j: values[i] - values[j] > margin, choice)
    if not decided:
        raise Skip(f"tie: none of {len(texts)} answers is better than another")
    asked: list[Any] = []
    if isinstance(prompt, list) or (prompt not in row and "{" in prompt):
        asked = spoken(text(row, prompt), "user")
    elif row.get(prompt) is not None:
        asked = spoken(row[prompt], "user")
    for turn in reversed(row.get(history) or []):
        if not isinstance(turn, list) or len(turn) != 2:
            raise TypeError(f"{history} holds {turn!r:.40}, expected [user, assistant]")
        asked = [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}, *asked]
    said, tools = [spoken(one, "assistant") for one in texts], {"tools": row["tools"]} if row.get("tools") else {}
    return [_pair(asked, said[i], said[j], tools) for i, j in decided]


def _pair(asked: list[Any], better: list[Any], worse: list[Any], more: dict[str, Any]) -> dict[str, Any]:
    shared = 0
    while shared < min(len(better), len(worse)) - 1 and better[shared] == worse[shared]:
        shared += 1
    if shared and (not asked or better[: len(asked)] == asked):
        if isinstance(better[shared], dict) and better[shared].get("role") == "user":
            raise ValueError("no_shared_prefix: the conversations part at a turn of the user")
        return {"prompt": better[:shared], "chosen": better[shared:], "rejected": worse[shared:], **more}
    if not asked:
        raise ValueError("no_shared_prefix: the answers share no first turn and there is no prompt")
    return {"prompt": asked, "chosen": better, "rejected": worse, **more}


def _verdicts(found: Any, count: int, column: str) -> set[tuple[int, int]]:
    compared = [(i, j) for i in range(count) for j in range(i + 1, count)]
    if not isinstance(found, list) or len(found) != len(compared):
        raise ValueError(f"wrong_number_of_verdicts: {column} must list {len(compared)} for {count} answers")
    better = set()
    for (i, j), verdict in zip(compared, found, strict=True):
        if str(verdict) not in ("0", "1", "2"):
            raise ValueError(f"unknown_vote: {column} holds {verdict!r}, expected 0, 1 or 2")
        if str(verdict) != "0":
            better.add((i, j) if str(verdict) == "1" else (j, i))
    return better


def _scores(row: dict[str, Any], answers: list[Any], scores: str | list[str]) -> list[float]:
    if isinstance(scores, list):
        found = [row[column] for column in scores]
    elif scores in row:
        found = read_json(row[scores], scores)
    else:
        found = [below(one, scores) if isinstance(one, dict) else None for one in answers]
    if not isinstance(found, list) or len(found) != len(answers):
        raise ValueError(f"wrong_number_of_scores: {len(answers)} answers need as many in {scores}")
    values = [number(value, f"a score in {scores}") for value in found]
    if missing := [value for value in values if value is None]:
        raise ValueError(f"wrong_type: {scores} holds {len(missing)} nulls or NaN, expected numbers")
    return [value for value in values if value is not None]
