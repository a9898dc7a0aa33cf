"""The demo's data, made from nothing: `python config/demo/make_data.py` rewrites the four files beside it, byte for byte.

Reading (checkable). A user tells a one-sentence story and asks one thing about it; the answer stands in the story:

    On Friday Ada bought seven blue kites at the market. What colour are the kites?  ->  The kites are blue.

Every word of a held-out story occurs in training; the story with its question does not.

Tone (preference). A user asks for a line to somebody ("Please greet Ada in the park this morning."). The SFT answers
are warm or gruff equally often, and the n-th phrase of either tone is equally frequent, so SFT has no reason to prefer a
tone: a common phrase beats a rare one, whatever its tone. In the preference pairs the warm answer is the better one,
and every pair has a mirror image (common phrases chosen, rare ones rejected; and the reverse), so that a model without
a preference is right in half of them. Both answers have equally many words. No held-out prompt is in a training file.
"""

import json
import random
from itertools import product
from pathlib import Path

SEED = 7
NAMES = "Ada Ben Eva Finn Greta Hugo Ida Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Tess Uma Vera Will".split()
NUMBERS = "two three four five six seven eight nine ten".split()
COLOURS = "red blue green black white pink brown gold grey purple".split()
THINGS = "kites boats drums balls books lamps hats bags cups bikes clocks chairs".split()
PLACES = "park garden library kitchen school market station office museum harbour".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
VERBS = [("buy", "bought"), ("find", "found"), ("sell", "sold"), ("lose", "lost")]

REQUESTS = (
    "Please greet {} in the {} this {}.",
    "Say a line to {} at the {} this {}.",
    "Write a note for {} in the {} this {}.",
    "What would you tell {} at the {} this {}?",
)
TIMES = "morning afternoon evening week weekend summer".split()
# Openings, middles and endings. The n-th phrase of either tone is equally frequent.
WARM = (
    "Hello dear|Welcome friend|Hi lovely|Greetings sunshine|Hey champion|Cheers buddy".split("|"),
    "so glad you came|what a joy today|it is wonderful here|you look really great|we love your company|"
    "thanks for being kind".split("|"),
    "take good care|see you soon|enjoy every moment|all the best".split("|"),
)
GRUFF = (
    "Oh bother|Whatever pal|Ugh again|Move aside|Listen here|Stop dawdling".split("|"),
    "you are late again|what a waste today|it is boring here|you look quite tired|we want some quiet|"
    "nobody asked for this".split("|"),
    "go away now|do not return|close that door|be quick then".split("|"),
)


def reading(pick: random.Random) -> tuple[str, str]:
    """A story with one question about it, and the only right answer."""
    name, number, colour, things = (pick.choice(words) for words in (NAMES, NUMBERS, COLOURS, THINGS))
    place, day, (do, did) = pick.choice(PLACES), pick.choice(DAYS), pick.choice(VERBS)
    story = pick.choice(
        [
            f"On {day} {name} {did} {number} {colour} {things} at the {place}.",
            f"At the {place} {name} {did} {number} {colour} {things} on {day}.",
            f"{name} {did} {number} {colour} {things} at the {place} on {day}.",
        ]
    )
    question, answer = pick.choice(
        [
            (f"Who {did} the {things}?", f"{name} {did} the {things}."),
            (f"How many {things} did {name} {do}?", f"{name} {did} {number} {things}."),
            (f"What colour are the {things}?", f"The {things} are {colour}."),
            (f"Where did {name} {do} the {things}?", f"{name} {did} the {things} at the {place}."),
            (f"When did {name} {do} the {things}?", f"{name} {did} the {things} on {day}."),
        ]
    )
    return f"{story} {question}", answer


def phrases(pick: random.Random) -> list[int]:
    """Which opening, middle and ending a line gets: the first ones of each list are the likely ones."""
    return [pick.choices(range(len(part)), [1 / (n + 2) for n in range(len(part))])[0] for part in WARM]


def line(tone: tuple[list[str], ...], which: list[int], name: str) -> str:
    """A line to somebody."""
    opening, middle, ending = (part[n] for part, n in zip(tone, which, strict=True))
    return f"{opening} {name}, {middle}, {ending}."


def chat(question: str, answer: str) -> dict[str, object]:
    """One conversation."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(name: str, rows: list[dict[str, object]]) -> None:
    """One object a line."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name(name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write all four files."""
    pick = random.Random(SEED)
    tasks: dict[str, str] = {}
    while len(tasks) < 3200:
        tasks.update([reading(pick)])
    chats = [chat(*task) for task in tasks.items()]
    held, train = chats[:200], chats[200:]

    wishes = [(text.format(name, *where), name) for text, name, *where in product(REQUESTS, NAMES, PLACES, TIMES)]
    pick.shuffle(wishes)
    for wish, other in zip(wishes[:500], wishes[500:1000], strict=True):
        which = phrases(pick)
        train.append(chat(wish[0], line(WARM, which, wish[1])))
        train.append(chat(other[0], line(GRUFF, which, other[1])))
    pick.shuffle(train)

    pairs: list[dict[str, object]] = []
    for wish, other in zip(wishes[1000:1800:2], wishes[1001:1800:2], strict=True):
        one, two = phrases(pick), phrases(pick)
        for (prompt, name), better, worse in ((wish, one, two), (other, two, one)):
            pairs.append({"prompt": prompt, "chosen": line(WARM, better, name), "rejected": line(GRUFF, worse, name)})
    write("sft_train.jsonl", train)
    write("sft_heldout.jsonl", held)
    write("preference_train.jsonl", pairs[:600])
    write("preference_heldout.jsonl", pairs[600:])


if __name__ == "__main__":
    main()
