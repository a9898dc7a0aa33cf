"""Trees of messages in which every message has replies, as in OpenAssistant: conversations, or pairs by rank."""

from collections.abc import Iterator
from typing import Any

from post_training.data.transforms import Skip, register_transform
from post_training.data.transforms._parts import ROLES, ranked_pairs
from post_training.data.transforms._values import flag, number

Used = tuple[list[int], Any]
"""Indices of messages, and the example that they make or the reason why they make none."""


def _tree_of(row: dict[str, Any], **arguments: Any) -> list[Any]:
    """A message belongs to the tree that it names, or else to its parent's."""
    if arguments["tree"] is not None:
        return [row[arguments["tree"]]]
    return [row[arguments["id"]], row[arguments["parent"]]]


@register_transform(
    "message_tree",
    group=_tree_of,
    gives=("messages", "preference"),
    choices={"paths": ("best", "all"), "pairs": (None, "best_worst", "best_rest", "all")},
)
def message_tree(
    rows: list[dict[str, Any]],
    id: str = "message_id",
    parent: str = "parent_id",
    text: str = "text",
    role: str = "role",
    rank: str = "rank",
    tree: str | None = "message_tree_id",
    deleted: str | None = "deleted",
    paths: str = "best",
    pairs: str | None = None,
) -> Iterator[Used]:
    """A flat table of messages that name their parents; a tree may be anywhere in the files.

    `paths: best` follows the best ranked reply (0 is best, without a rank comes last) and gives one conversation a tree;
    `all` gives one for each answer that no other follows. With `pairs` (`best_worst`, `best_rest` or `all`) the ranked replies of the
    assistant to one message become preferences instead. The other arguments name columns; `tree: null` finds trees by
    their parents alone, `deleted: null` keeps deleted messages.

    >>> question = {"message_id": 1, "parent_id": None, "message_tree_id": 1, "role": "prompter", "text": "1+1?"}
    >>> answer = {"message_id": 2, "parent_id": 1, "message_tree_id": 1, "role": "assistant", "text": "2", "rank": 0}
    >>> [used for used, example in message_tree([question, answer])]
    [[0, 1]]
    """
    messages: dict[Any, _Message] = {}
    for index, row in enumerate(rows):
        if row[id] in messages:
            yield [index], ValueError(f"duplicate_id: {id} {row[id]!r} is the id of another message")
        elif row[id] is None:
            yield [index], ValueError(f"missing_column: {id}")
        else:
            gone = deleted is not None and flag(row.get(deleted), deleted) is True
            above = None if row[parent] == "" else row[parent]  # an empty cell of CSV
            turn = _turn(row[role], row[text])
            messages[row[id]] = _Message(index, above, turn, number(row.get(rank), rank), gone)
    roots: list[_Message] = []
    used: set[int] = set()
    for message in messages.values():
        if message.parent is None:
            roots.append(message)
        elif message.parent in messages:
            messages[message.parent].replies.append(message)
        else:
            used.add(message.index)
            yield [message.index], ValueError(f"no_parent: {parent} {message.parent!r} is not in the files")
    for indices, example in _examples(roots, paths, pairs):
        used.update(indices)
        yield indices, example
    yield from _reasons(list(messages.values()), roots, used, pairs)


@register_transform(
    "nested_tree",
    gives=("messages", "preference"),
    choices={"paths": ("best", "all"), "pairs": (None, "best_worst", "best_rest", "all")},
)
def nested_tree(
    row: dict[str, Any],
    root: str = "prompt",
    replies: str = "replies",
    text: str = "text",
    role: str = "role",
    rank: str = "rank",
    deleted: str | None = "deleted",
    paths: str = "best",
    pairs: str | None = None,
) -> list[dict[str, Any]]:
    """One tree a row: the column `root` holds the first message, and every message its replies.

    Arguments as in `message_tree`.

    >>> nested_tree({"prompt": {"role": "prompter", "text": "1+1?", "replies": [{"role": "assistant", "text": "2"}]}})
    [{'messages': [{'role': 'user', 'content': '1+1?'}, {'role': 'assistant', 'content': '2'}]}]
    """
    first = _nested(row[root], 0, deleted, text, role, rank)
    pending, count = [(first, row[root])], 1
    while pending:
        message, found = pending.pop()
        for reply in found.get(replies) or []:
            message.replies.append(_nested(reply, count, deleted, text, role, rank))
            pending.append((message.replies[-1], reply))
            count += 1
    examples = [example for _, example in _examples([first], paths, pairs)]
    if not examples:
        raise Skip("no_pair: no two ranked answers to one message" if pairs else "no_answer: no path has an answer")
    return examples


class _Message:
    """One message of a tree and its replies."""

    def __init__(self, index: int, parent: Any, turn: dict[str, Any], rank: Any, deleted: bool) -> None:
        self.index, self.parent, self.turn, self.rank, self.deleted = index, parent, turn, rank, deleted
        self.replies: list[_Message] = []

    @property
    def answers(self) -> bool:
        """Whether the assistant speaks."""
        return bool(self.turn["role"] == "assistant")


def _turn(role: Any, text: Any) -> dict[str, Any]:
    return {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": text}


def _nested(found: Any, index: int, deleted: str | None, text: str, role: str, rank: str) -> _Message:
    if not isinstance(found, dict):
        raise TypeError(f"found {type(found).__name__}, expected a message with {text} and {role}")
    gone = deleted is not None and flag(found.get(deleted), deleted) is True
    return _Message(index, None, _turn(found[role], found[text]), number(found.get(rank), rank), gone)


def _examples(roots: list[_Message], paths: str, choice: str | None) -> Iterator[Used]:
    """What the trees give: conversations, or with `choice` pairs."""
    if paths not in ("best", "all"):
        raise ValueError(f"unknown_choice: paths is {paths!r}, expected best or all")
    pending = [[root] for root in reversed(roots) if not root.deleted]
    ended: set[int] = set()
    followed_up = _followed_up(roots) if paths == "all" else set()
    while pending:
        path = pending.pop()
        replies = sorted(
            (reply for reply in path[-1].replies if not reply.deleted),
            key=lambda reply: (reply.rank is None, reply.rank or 0),
        )
        if choice is not None:
            yield from _pairs(path, replies, choice)
        elif not replies:
            while path and not path[-1].answers:
                path = path[:-1]
            if path and path[-1].index not in ended | followed_up:
                ended.add(path[-1].index)
                yield [message.index for message in path], {"messages": [message.turn for message in path]}
            continue
        followed = replies[:1] if paths == "best" and choice is None else replies
        pending += [[*path, reply] for reply in reversed(followed)]


def _followed_up(roots: list[_Message]) -> set[int]:
    """Answers after which another answer comes: a conversation that ends there is the beginning of a longer one."""
    found: set[int] = set()
    pending: list[tuple[_Message, list[int]]] = [(root, []) for root in roots if not root.deleted]
    while pending:
        message, answers = pending.pop()
        if message.answers:
            found.update(answers)
            answers = [message.index]
        pending += [(reply, answers) for reply in message.replies if not reply.deleted]
    return found


def _pairs(path: list[_Message], replies: list[_Message], choice: str) -> Iterator[Used]:
    ranked = [reply for reply in replies if reply.answers and reply.rank is not None]
    for better, worse in ranked_pairs(len(ranked), lambda i, j: ranked[i].rank < ranked[j].rank, choice):
        pair = {"prompt": [message.turn for message in path]}
        pair |= {"chosen": [ranked[better].turn], "rejected": [ranked[worse].turn]}
        yield [message.index for message in (*path, ranked[better], ranked[worse])], pair


def _reasons(messages: list[_Message], roots: list[_Message], used: set[int], choice: str | None) -> Iterator[Used]:
    """Why each message that is in no example is in none."""
    gone: dict[int, bool] = {}  # of those that hang on a root: whether it, or one above it, was deleted
    pending = [(root, root.deleted) for root in roots]
    while pending:
        message, deleted = pending.pop()
        gone[message.index] = deleted
        pending += [(reply, deleted or reply.deleted) for reply in message.replies]
    for message in messages:
        if message.index in used:
            continue
        if message.index not in gone:
            yield [message.index], ValueError("no_parent: what it answers hangs on no first message")
        elif gone[message.index]:
            yield [message.index], Skip("deleted: it, or a message that it hangs on")
        elif not message.answers and all(reply.deleted for reply in message.replies):
            yield [message.index], Skip("no_answer: nobody answered it")
        elif choice is not None:
            yield [message.index], Skip("no_pair: it has no rank, or nothing to be compared with")
        else:
            yield [message.index], Skip("other_path: a reply that is ranked better was followed")
