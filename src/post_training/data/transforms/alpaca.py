"""Alpaca rows: an instruction, often with an input, and an output."""

from typing import Any

from post_training.data.transforms import register_transform


@register_transform("alpaca", gives="messages")
def alpaca(
    row: dict[str, Any],
    instruction: str = "instruction",
    input: str = "input",
    output: str = "output",
    system: str = "system",
    history: str = "history",
) -> dict[str, Any]:
    """Instruction and input become one user turn; earlier turns come from `history` ([[user, assistant], ...]).

    All arguments name columns; `input`, `system` and `history` need not be there.

    >>> alpaca({"instruction": "Add.", "input": "1 1", "output": "2"})["messages"][0]["content"]
    'Add.\\n\\n1 1'
    """
    for column in (instruction, output):
        if not isinstance(row[column], str):
            if row[column] is None:
                raise KeyError(column)
            raise TypeError(f"{column} is {type(row[column]).__name__}, expected text")
    more = row.get(input)
    if not isinstance(more, str | None):
        raise TypeError(f"{input} is {type(more).__name__}, expected text")
    messages = [{"role": "system", "content": row[system]}] if row.get(system) else []
    for turn in row.get(history) or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise TypeError(f"{history} holds {turn!r:.40}, expected [user, assistant]")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = "\n\n".join(part for part in (row[instruction], more) if part)
    return {"messages": [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": row[output]}]}
