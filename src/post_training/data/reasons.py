"""Every reason for which a row is left out, and what it means: the table of docs/troubleshooting.md is made from it."""

REASONS = {
    "undecodable_line": "the line is not JSON, or its bytes are not UTF-8",
    "not_a_number": "NaN or Infinity, which JSON does not know",
    "not_an_object": "the line is JSON, but no object",
    "duplicate_key": "one object has a key twice",
    "nested_too_deeply": "values inside of values, more than 250 levels of what is used, or about 1,000 of what is not",
    "wrong_number_of_cells": "a line of CSV with more or fewer cells than the header",
    "missing_column": "the column does not exist in this row, or is null",
    "wrong_type": "a value has another type than the transform expects",
    "wrong_shape": "the transform gives pairs and the stage takes conversations, or the like",
    "empty_conversation": "a list without turns",
    "empty_content": "a turn without a character that is seen and without a tool call",
    "nul_character": "text with U+0000",
    "unknown_role": "a role that is not in `roles`",
    "role_order": "turns that do not alternate, a system turn that is not the first, the result of no call",
    "no_user_turn": "a prompt without a turn of the user",
    "no_assistant_turn": "no answer to learn from",
    "last_turn_not_assistant": "see `data.last_turn`",
    "train_flag": "`train`, `loss` or `weight` of a turn is neither 0 nor 1, or cannot be followed here",
    "no_trained_turn": "the flags of its turns leave nothing to be trained on",
    "identical_pair": "chosen and rejected are the same, or differ in blanks only",
    "no_shared_prefix": "two conversations of a pair that do not begin alike, and no prompt",
    "bad_tool_call": "a tool call that is not JSON or names no function",
    "huge_number": "an integer of more than 64 bits in a tool or a call",
    "unsupported_content": "pictures, sound, files: only text is trained on",
    "undecodable_text": "half of a surrogate pair",
    "not_json": "a value that cannot be written as JSON",
    "not_a_transcript": "text that does not begin with the name of a speaker",
    "not_comparable": "an evaluation measures conversations and pairs, not answers with a label",
    "unknown_vote": "a vote that is neither answer's nor a tie",
    "unknown_choice": "an argument of the transform that is not on offer",
    "wrong_number_of_scores": "answers and scores differ in number",
    "wrong_number_of_verdicts": "not one verdict for each two answers",
    "duplicate_id": "the id of another message",
    "no_parent": "a reply to a message that is not in the files",
    "no_example": "the transform returned an empty list",
    "not_used": "skipped: the transform made nothing of it",
    "tie": "skipped: no answer is better than another",
    "no_pair": "skipped: a message without ranked replies",
    "no_answer": "skipped: nobody answered the message",
    "other_path": "skipped: a reply that is ranked better was followed",
    "deleted": "skipped: the message, or one above it, was deleted",
    "unusable_row": "the transform raised a ValueError without a reason",
    "transform_error": "the transform failed",
    "template_error": "when tokenised: the chat template refuses the conversation",
    "control_token": "when tokenised: the text spells a control token; see `data.special_tokens_in_content`",
    "reserved_character": "when tokenised: the text holds U+FDD0, U+FDD1 or U+FDD2, which mark what is trained on",
    "no_trained_token": "when tokenised: the template marks no token of this example",
}

REMEDIES = {
    "undecodable_line": "save the file as UTF-8, or fetch it again",
    "not_a_number": "write null for it",
    "not_an_object": "a row is an object with the names of its columns",
    "duplicate_key": "write the rows again with each key once",
    "wrong_number_of_cells": "check the separator, the quotes, and that the first line names the columns",
    "not_json": "lists in CSV are JSON text; a file that Python's own notation is in is best written again as JSON Lines or Parquet",
    **dict.fromkeys(
        ("wrong_type", "wrong_shape", "not_a_transcript", "no_parent"), "choose a transform that fits the source"
    ),
}
"""Reason -> what to do where most rows have it, where that needs no more than the reason; see `transform.py` for the others."""


def table() -> str:
    """The reasons as a table of Markdown."""
    return "\n".join(
        ["| reason | problem |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in REASONS.items())]
    )
