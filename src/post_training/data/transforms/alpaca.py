"""Alpaca rows: an instruction, often with an input, and an output."""

from typing import Any

from post_training.data.transforms import register_transform


@register_transform("alpaca")
def alpaca(
    row: dict[str, Any],
    instruction: str = "instruction",
    input: str = "input",
    output: str = "output",
    system: str = "system",
    history: str = "history",
) -> dict[str, Any]:
    """Instruction and input become one user turn; earlier turns come from `history` ([[user, assistant], ...]).

    >>> alpaca({"instruction": "Add.", "input": "1 1", "output": "2"})["messages"][0]["content"]
    'Add.\\n\\n1 1'
    """
    for column in (instruction, output):
        if not isinstance(row[column], str):
            raise TypeError(f"{column} is {type(row[column]).__name__}, expected text")
    messages = [{"role": "system", "content": row[system]}] if row.get(system) else []
    for question, answer in row.get(history) or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    asked = "\n\n".join(part for part in (row[instruction], row.get(input)) if part)
    return {"messages": [*messages, {"role": "user", "content": asked}, {"role": "assistant", "content": row[output]}]}
