"""A small set of our own for `text_retention`, for machines without a network. Written for this purpose.

It is large enough to show a change and too small to rank models: bring a set of your own (`read_retention`) for that.
"""

from __future__ import annotations

from aura.evaluation.retention import TextChoice

TEXTS = (
    "The harbour was quiet before sunrise. Two fishing boats lay at the wall, and a man in a blue jacket carried boxes "
    "of ice from a van to the nearer one. By seven o'clock the gulls had found him, and by eight the market was open.",
    "To make a simple bread, mix five hundred grams of flour with a spoon of salt, a little yeast and warm water. Knead "
    "it for ten minutes, let it rest for an hour, shape it, and bake it in a hot oven until the crust sounds hollow.",
    "Water expands when it freezes, which is why ice floats and why pipes burst in winter. Most other liquids shrink as "
    "they become solid. Without this exception lakes would freeze from the bottom, and few fish would survive the cold.",
    "The committee met three times last month. It agreed on the budget for the library, postponed the decision about "
    "the bridge, and asked the engineers for a second report. Members of the public may read the minutes online.",
    'def area(width, height):\n    """Area of a rectangle."""\n    if width < 0 or height < 0:\n'
    '        raise ValueError("sides must not be negative")\n    return width * height\n',
    "My grandmother kept letters in a tin under the stairs. When she died we found hundreds of them, tied in bundles by "
    "year, and among them one that she had written herself and never sent. It began with the words: I have decided.",
    "Trains to the coast leave every half hour from platform four. Tickets bought on board cost two euros more. Bicycles "
    "are allowed outside the rush hours. In case of delays, passengers may use the bus from the square in front.",
    "In the second half the visitors pressed harder. Their captain hit the post, the goalkeeper saved twice, and with a "
    "minute left a long pass found the youngest player on the field, who lifted the ball over everyone and into the net.",
)


def _choice(question: str, *options: str, answer: int = 0) -> TextChoice:
    return TextChoice(question=question, options=options, answer=answer)


CHOICES = (
    _choice("What is the capital of France?", "Paris", "London", "Berlin", "Madrid"),
    _choice("How many days are in a week?", "five", "seven", "ten", "twelve", answer=1),
    _choice("Which animal barks?", "cat", "cow", "dog", "duck", answer=2),
    _choice("What do bees make?", "milk", "honey", "bread", "paper", answer=1),
    _choice("What colour is grass?", "green", "blue", "red", "black"),
    _choice("What is two plus two?", "three", "four", "five", "six", answer=1),
    _choice("Which of these is a fruit?", "chair", "apple", "hammer", "window", answer=1),
    _choice("Where do fish live?", "in water", "in trees", "in the desert", "in books"),
    _choice("What falls from clouds?", "rain", "coins", "shoes", "stones"),
    _choice("Which month comes after March?", "May", "June", "April", "July", answer=2),
    _choice("What is the opposite of hot?", "cold", "loud", "fast", "tall"),
    _choice("Which of these can fly?", "horse", "eagle", "snake", "whale", answer=1),
    _choice("What do you use to cut paper?", "scissors", "spoon", "pillow", "ladder"),
    _choice("Which planet do we live on?", "Mars", "Venus", "Earth", "Saturn", answer=2),
    _choice("What is frozen water called?", "steam", "ice", "sand", "oil", answer=1),
    _choice("Which language is spoken in Brazil?", "Portuguese", "German", "Russian", "Greek"),
)
