"""Jokes by topic, never twice in a conversation; explains a joke of the conversation, or tells it again."""

from typing import NamedTuple

from local_services.offline_model.conversation import Conversation, capitalized, clip, find, sentences


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
        r"pirate|birthday|age\b",
        "What did the pirate say when he turned eighty? “Aye, matey!”",
        "“Aye, matey” is how a pirate says “yes, friend”. Said aloud it is close to “I'm eighty”, which is his age.",
    ),
    Joke(
        "program|developer|software|code|coding|engineer|milk|egg",
        "“Buy a carton of milk,” a programmer is told, “and if they have eggs, get six.” He comes home with six "
        "cartons of milk: they had eggs.",
        "He runs the sentence like a program: the condition is about eggs, but “get six” still refers to the milk. "
        "Any person would have understood six eggs.",
    ),
    Joke(
        "program|developer|computer|halloween|christmas|number|math",
        "Why do programmers mix up Halloween and Christmas? Because Oct 31 equals Dec 25.",
        "Oct and Dec are months, and also short for octal and decimal: 31 in base eight is 25 in base ten.",
    ),
    Joke(
        r"database|sql|data|table|bar\b",
        "A SQL query walks into a bar, goes up to two tables and asks: “May I join you?”",
        "JOIN is how SQL combines two tables; in a bar it is simply a polite question.",
    ),
    Joke(
        r"cat\b|cats|kitten|pets?\b|computer|mouse",
        "Why did the cat sit on the computer? To keep an eye on the mouse.",
        "A computer's mouse is a pointing device, a cat's mouse is dinner, and the cat does not see the difference.",
    ),
    Joke(
        r"cat\b|cats|jungle|poker|lion|animal",
        "Why don't cats play poker in the jungle? Too many cheetahs.",
        "“Cheetahs”, the big cats of the plains, sound like “cheaters”, whom nobody wants at a card table.",
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
        "atom|physic|science|trust",
        "Never trust an atom: they make up everything.",
        "To make up is to invent, which liars do, and to be what something consists of, which atoms do.",
    ),
    Joke(
        "chemi|gas|element|science",
        "I would tell you a chemistry joke, but all the good ones argon.",
        "Argon, a noble gas, sounds like “are gone”.",
    ),
    Joke(
        r"robot|ai\b|machine|model|holiday",
        "Why did the robot go on holiday? It needed to recharge its batteries.",
        "People say it of themselves when they are tired; for the robot it is literally true.",
    ),
    Joke(
        "durable|workflow|schedul|crash|cloud|server|task",
        "I would tell you the one about the crashed worker, but it would only be replayed until everyone had heard it "
        "exactly once.",
        "A durable orchestration is replayed after a crash, and still every step counts once: here, the joke does.",
    ),
]

# For topics without a joke. The words after the topic tell them apart.
ANY_TOPIC = [
    Joke(
        "",
        "{topic}, a worker and a scheduler walk into a bar. The worker crashes into the counter and all goes dark. "
        "“No problem,” says the scheduler, “we go on from where we were.”",
        "Bar jokes end badly for somebody, but in a durable system a crash costs nothing: the scheduler remembers "
        "everything, and the evening simply goes on.",
    ),
    Joke(
        "",
        "Knock, knock. Who's there? The one about {topic}. Which one exactly? I can't say: I am the offline model, "
        "I only repeat what I was given at the door.",
        "A knock-knock joke turns on a name with two meanings. The offline model cannot invent one, so the joke is on "
        "itself.",
    ),
    Joke(
        "",
        "How do you make sure that a joke about {topic} is heard exactly once? Tell it at least once, and to a "
        "listener who is idempotent.",
        "It is how reliable systems deliver messages: at least once, to a receiver that ignores repeats. With jokes, "
        "most listeners do that by nature.",
    ),
]

EXPLANATION = "The joke was:"
ONCE_MORE = "Gladly, once more:"


def answer(conversation: Conversation) -> str | None:
    """Explains, repeats or tells a joke, if the user asks for that."""
    request = conversation.request
    if find(r"\bexplain\b.{0,20}\bjokes?\b|\bfunny\b.{0,20}\?|(get|understand) (the|that|your) joke|so funny", request):
        return explain(conversation)
    told = last_told(conversation)
    if told and find(r"^\W*(please |now |can you |could you )*explain( it| that| this)?\W*$", request):
        return explain(conversation)
    if told and find(r"\b(voice|style|manner|words) of\b|\bagain\b|\bretell|\brepeat|\bshorter\b|\blike an? ", request):
        return tell_again(told, request)
    if find(r"\bjokes?\b|make me laugh|something funny|\bpun\b|another one|one more", request) or (
        told and find(r"\bone about\b", request)
    ):
        return tell(conversation)
    return None


def tell(conversation: Conversation) -> str:
    """A joke about the requested or an earlier topic that this conversation does not contain yet."""
    topic = next(filter(None, map(topic_of, reversed(conversation.asked))), "")
    heard = "\n".join(conversation.answered)
    fresh = [joke for joke in JOKES if joke.text not in heard]
    if matching := [joke for joke in fresh if not topic or find(rf"\b({joke.about})", topic)]:
        return matching[0].text
    for joke in ANY_TOPIC:
        if tail(joke) not in heard:
            at_start = joke.text.startswith("{topic}")
            return joke.text.replace("{topic}", capitalized(topic) if at_start else topic)
    if fresh:
        return fresh[0].text
    return "That was every joke that the offline model knows; a real model knows more. Shall I explain one?"


def explain(conversation: Conversation) -> str:
    """Why the joke in this conversation is funny."""
    told = last_told(conversation)
    if not told:
        return "I have not told a joke in this conversation yet, so there is none to explain. Shall I tell one?"
    why = next(joke.why for joke in [*JOKES, *ANY_TOPIC] if tail(joke) in told)
    return f"{EXPLANATION} “{told}” {why}"


def tell_again(told: str, request: str) -> str:
    """The same joke in another manner."""
    if find("shorter", request):
        return f"In short: {sentences(told)[-1]}"
    manner = find(r"(?:voice|style|manner|words) of (.{1,40})|\blike (an? .{1,40})", request)
    if not manner:
        return f"{ONCE_MORE} “{told}”"
    voice = (manner[1] or manner[2]).strip(" .!?")
    if find("pirate", voice):
        return f"Arr, gather round, ye landlubbers! {told} Yo ho ho!"
    if find("robot|machine|computer", voice):
        return f"BEEP. HUMOUR MODULE LOADED. {told.upper()} END OF HUMOUR. BEEP."
    if find("shakespeare|poet|bard", voice):
        return f"Hark, good friend, and lend thine ear: {told} Thus ends the jest, and well it did appear."
    return f"(clears throat, and speaks in the voice of {voice}) “{told}”"


def last_told(conversation: Conversation) -> str:
    """The latest joke that was told in this conversation, or an empty string."""
    for said in reversed(conversation.answered):
        if not said.startswith((EXPLANATION, ONCE_MORE)) and any(tail(joke) in said for joke in [*JOKES, *ANY_TOPIC]):
            return said
    return ""


def topic_of(request: str) -> str:
    """The topic of the requested joke; empty if the request has none."""
    found = find(r"\b(?:jokes?|pun|one|funny)\b.{0,20}?\b(?:about|on|with|involving)\s+([^.?!,;\n]{1,60})", request)
    return clip(found[1], 60) if found else ""


def tail(joke: Joke) -> str:
    """The part of a joke that is the same for all topics."""
    return joke.text.split("{topic}")[-1]
