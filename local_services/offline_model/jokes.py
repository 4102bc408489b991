"""Jokes by topic, never twice in a conversation; explains a joke of the conversation, or tells it again."""

from typing import NamedTuple

from local_services.offline_model.conversation import Conversation, clip, find, sentences


class Joke(NamedTuple):
    about: str
    text: str
    why: str


JOKES = [
    Joke(
        r"pirate|sailor|sea\b|ships?\b",
        "Why did the pirate take so long to learn the alphabet? Because he spent years at C.",
        "The letter C and the word “sea” sound the same: the alphabet's third letter is also where pirates spend "
        "their years.",
    ),
    Joke(
        "program|developer|computer|code|halloween|christmas|math",
        "Why do programmers mix up Halloween and Christmas? Because Oct 31 equals Dec 25.",
        "Oct and Dec are months, and also short for octal and decimal: 31 in base eight is 25 in base ten.",
    ),
    Joke(
        r"cats?\b|kitten|pets?\b|computer|mouse",
        "Why did the cat sit on the computer? To keep an eye on the mouse.",
        "A computer's mouse is a pointing device, a cat's mouse is dinner, and the cat does not see the difference.",
    ),
    Joke(
        "coffee|espresso|caf|morning|police",
        "Why did the coffee call the police? It got mugged.",
        "To be mugged is to be robbed in the street, and to be put into a mug, which is what happens to coffee.",
    ),
    Joke(
        r"dogs?\b|puppy|magic|pets?\b|animal",
        "What do you call a dog that does magic? A labracadabrador.",
        "It folds the magician's “abracadabra” into the name of a breed of dog, the Labrador.",
    ),
    Joke(
        r"robot|ai\b|machine|model|holiday",
        "Why did the robot go on holiday? It needed to recharge its batteries.",
        "People say it of themselves when they are tired; for the robot it is literally true.",
    ),
]
ANY_TOPIC = Joke(
    "",
    "How do you make sure that a joke about {topic} is heard exactly once? Tell it at least once, and to a listener "
    "who is idempotent.",
    "It is how reliable systems deliver messages: at least once, to a receiver that ignores repeats. With jokes, most "
    "listeners do that by nature.",
)
NO_MORE = "That was every joke that the offline model knows; a real model knows more. Shall I explain one?"
EXPLANATION, ONCE_MORE = "The joke was:", "Gladly, once more"


def answer(conversation: Conversation) -> str | None:
    """Explains, repeats or tells a joke, if the user asks for that."""
    request, told = conversation.request, last_told(conversation)
    asks_why = find(r"\bexplain\b.{0,20}\bjokes?\b|\bfunny\b.{0,20}\?|(get|understand) (the|that|your) joke", request)
    if asks_why or (told and find(r"^\W*(please |now |can you |could you )*explain( it| that| this)?\W*$", request)):
        if not told:
            return "I have not told a joke in this conversation yet, so there is none to explain. Shall I tell one?"
        return f"{EXPLANATION} “{told}” {next(joke.why for joke in (*JOKES, ANY_TOPIC) if tail(joke) in told)}"
    if told and find("shorter", request):
        return f"In short: {sentences(told)[-1]}"
    if told and (manner := find(r"\bagain\b|\bretell|\brepeat|in the (?:voice|style) of [^.!?]{1,40}", request)):
        return f"{ONCE_MORE} ({manner[0]}): “{told}”"
    if not find(r"\bjokes?\b|make me laugh|something funny|another one|one more|\bone about\b", request):
        return None
    topic = next(filter(None, map(topic_of, reversed(conversation.asked))), "")
    fresh = [joke for joke in JOKES if not any(joke.text in said for said in conversation.answered)]
    matching = [joke.text for joke in fresh if not topic or find(rf"\b({joke.about})", topic)]
    about_any = [] if any(tail(ANY_TOPIC) in said for said in conversation.answered) else [ANY_TOPIC.text]
    made_up = [text.replace("{topic}", topic) for text in about_any if topic]
    return [*matching, *made_up, *(joke.text for joke in fresh), NO_MORE][0]


def last_told(conversation: Conversation) -> str:
    """The latest joke that was told in this conversation, or an empty string."""
    for said in reversed(conversation.answered):
        if not said.startswith((EXPLANATION, ONCE_MORE)) and any(tail(joke) in said for joke in (*JOKES, ANY_TOPIC)):
            return said
    return ""


def topic_of(request: str) -> str:
    """The topic of the requested joke; empty if the request has none."""
    found = find(r"\b(?:jokes?|one|funny)\b.{0,20}?\b(?:about|on|with)\s+([^.?!,;\n]{1,60})", request)
    return clip(found[1], 60) if found else ""


def tail(joke: Joke) -> str:
    """The part of a joke that is the same for all topics."""
    return joke.text.split("{topic}")[-1]
