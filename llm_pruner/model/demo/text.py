"""The text of the demo model: small generated stories in which counting pays.

People of a harbour town carry, give, lose and find things. The last sentences of a story state who
has how many, so a model has to follow people, objects and numbers through the story to predict
them: a task on which removed heads and neurons show. Everything comes from `random.Random(seed)`,
so a seed names a text.
"""

import random

NAMES = ("Mara", "Oren", "Tilda", "Bruno", "Ines", "Kofi", "Lena", "Piet", "Sana", "Yusuf", "Vera", "Milo")
FEMALE = {"Mara", "Tilda", "Ines", "Lena", "Sana", "Vera"}
THINGS = (
    ("lantern", "lanterns"), ("rope", "ropes"), ("barrel", "barrels"), ("kettle", "kettles"), ("letter", "letters"),
    ("net", "nets"), ("apple", "apples"), ("coin", "coins"), ("candle", "candles"), ("blanket", "blankets"),
)  # fmt: skip
COLOURS = ("red", "green", "grey", "blue", "old", "new", "small", "heavy")
PLACES = ("harbour", "mill", "market", "chapel", "lighthouse", "bakery", "school", "ferry", "stone bridge", "inn")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEATHER = (
    "The wind was cold and the gulls were loud.",
    "Rain fell on the roofs all morning.",
    "A thin fog lay over the water.",
    "The sun was warm and the street was full of people.",
    "Snow had covered the steps during the night.",
    "It was a quiet day, and the tide was low.",
)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def story(rng: random.Random) -> str:
    """Return a story of five to ten sentences whose last ones follow from the others."""
    people = rng.sample(NAMES, 2)
    thing, things = rng.choice(THINGS)
    colour = rng.choice(COLOURS)
    day = rng.randrange(7)
    has = {person: rng.randint(1, 6) for person in people}

    def count(number: int) -> str:
        return f"{NUMBERS[number]} {thing if number == 1 else things}"

    first, second = people
    lines = [
        f"On {DAYS[day]} {first} came to the {rng.choice(PLACES)} with {NUMBERS[has[first]]} {colour} "
        f"{thing if has[first] == 1 else things}.",
        rng.choice(WEATHER),
        f"There {'she' if first in FEMALE else 'he'} met {second}, who had {count(has[second])}.",
    ]
    for _ in range(rng.randint(1, 4)):
        giver, taker = rng.sample(people, 2)
        pronoun, own = ("She", "her") if giver in FEMALE else ("He", "his")
        event = rng.choice(("give", "lose", "find", "walk"))
        if event == "give" and has[giver]:
            number = rng.randint(1, has[giver])
            has[giver] -= number
            has[taker] += number
            lines.append(f"{giver} gave {NUMBERS[number]} of {own} {colour} {things} to {taker}.")
        elif event == "lose" and has[giver]:
            has[giver] -= 1
            lines.append(f"{giver} lost one {thing} near the {rng.choice(PLACES)}. {pronoun} looked for it in vain.")
        elif event == "find" and sum(has.values()) < 12:
            has[giver] += 1
            lines.append(f"{giver} found one more {thing} behind the {rng.choice(PLACES)}.")
        else:
            lines.append(f"Then {giver} and {taker} walked from the {rng.choice(PLACES)} to the {rng.choice(PLACES)}.")
    lines.append(f"In the evening {first} had {count(has[first])} and {second} had {count(has[second])}.")
    most = max(people, key=lambda person: has[person])
    if has[first] == has[second]:
        lines.append("They had the same number.")
    else:
        lines.append(f"So {most} had more.")
    lines.append(f"They agreed to meet again on {DAYS[(day + 1) % 7]}.")
    return " ".join(lines)


def generate(stories: int, seed: int) -> str:
    """Return `stories` stories, one a line, the same for the same seed on every machine."""
    rng = random.Random(seed)
    return "\n".join(story(rng) for _ in range(stories)) + "\n"


TRAINING_SEED, HELD_OUT_SEED = 1, 2


def held_out(stories: int = 400) -> str:
    """Return the text the demo model is scored on; training never saw its seed."""
    return generate(stories, HELD_OUT_SEED)


def training(stories: int = 2_000) -> str:
    """Return some of what the demo model was trained on, to calibrate with."""
    return generate(stories, TRAINING_SEED)
