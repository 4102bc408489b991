"""Earlier messages: the questions, the user's facts, and summaries that keep them."""

import re

from local_services.offline_model.conversation import SUMMARY, Conversation, clip, find, sentences

ORDER = ["first", "second", "third", "fourth", "fifth"]
FACT = (
    r"^(?:(?:hi|hello|hey|please|and|also|oh|well|by the way|note)\b[\s,!:]{1,3}){0,3}"
    r"(?:remember\b|(?:keep in mind|note) that|my \w|i(?:'m|’m| am)\b|call me\b|we (?:are|have|live|need|want)\b|"
    r"i (?:live|work|have|like|love|prefer|hate|study|use|need|own|speak|come|don['’]t|can['’]t|want|was born)\b)"
)
NAME = r"\b(?i:my name is|call me|i am called)\s+([^\W\d_][\w'’-]{0,40}(?:\s[A-Z][\w'’-]{1,40}){0,2})"
SAYS_NOTHING = (
    r"^(what|is|my|the|an|am|are|do|did|does|you|me|to|of|in|on|for|have|has|remember|know|about|that|and|tell|who)$"
)


def answer(conversation: Conversation) -> str | None:
    """Answers a question about the conversation itself, or summarizes it."""
    request = conversation.request
    if find(r"\b(summari[sz]e|summary|recap|sum up)\b.{0,40}\b(conversation|chat|so far|we|our|everything)\b", request):
        known = facts(conversation)
        asked = [clip(text, 120) for text in conversation.asked[:-1] if clip(text) not in known]
        return summary(known, asked[-12:]) if known or asked else "There is nothing to summarize yet."
    return earlier(conversation) or about_user(conversation)


def earlier(conversation: Conversation) -> str | None:
    """The user's first, second or last message, or the model's last answer."""
    before, request = conversation.asked[:-1], conversation.request
    if find(r"\bwhat (did|have|was|were)\b.{0,20}\byour? (just |last |previous )?(say|said|answer|reply)\b", request):
        said = conversation.previous
        return f"I said: “{clip(said, 1000)}”" if said else "I have not said anything in this conversation yet."
    found = find(rf"\b({'|'.join(ORDER)}|last|previous|just|before|earlier|so far|all)\b", request)
    if not found or not find(r"\bwhat\b.{0,30}\b(i|my)\b.{0,30}\b(ask|say|said|question|message|tell|told)", request):
        return None
    which = found[1].lower()
    if not before:
        return "This is your first message in this conversation; there is none before it."
    if which in ("all", "so far"):
        return "Your messages so far:\n\n" + "\n".join(f"{n}. {clip(text)}" for n, text in enumerate(before, 1))
    if which not in ORDER:
        return f"Just before this, you said: “{clip(before[-1], 500)}”"
    if conversation.summary:
        return f"I only know the summary of the beginning of our conversation:\n\n{conversation.summary}"
    if ORDER.index(which) >= len(before):
        return f"There is no {which} message before this one; there are {len(before)}."
    return f"Your {which} message was: “{clip(before[ORDER.index(which)], 500)}”"


def about_user(conversation: Conversation) -> str | None:
    """The answer to a question about the user, from what the user has said."""
    request = conversation.request
    if find(r"\b(what('s|’s| is) my name|who am i|(know|remember) my name)\b", request):
        name = name_of_user(conversation)
        return f"Your name is {name}." if name else "You have not told me your name in this conversation."
    if find(
        r"^(and |so |but |please )?(what|where|which|when|how|who|do|am|can)\b.{0,80}\b(i|my|me)\b.{0,200}\?", request
    ):
        everything = find(r"about me\b|\bwhat have i told you", request)
        known = [fact for fact in facts(conversation) if everything or stems(request) & stems(fact)]
        return f"You told me: “{' '.join(known if everything else known[-1:])}”" if known else None
    return None


def take_note(conversation: Conversation) -> str | None:
    """Confirms a fact that the user stated."""
    request = conversation.request
    if not find(FACT, request) or "?" in request or len(request) > 300:
        return None
    name = re.search(NAME, request)
    return f"{f'Nice to meet you, {name[1]}' if name else 'Noted'}. I will remember it in this conversation."


def name_of_user(conversation: Conversation) -> str:
    """The name that the user gave last, or an empty string."""
    found = [re.search(NAME, text) for text in facts(conversation)]
    return next((name[1] for name in reversed(found) if name), "")


def facts(conversation: Conversation) -> list[str]:
    """What the user stated about themselves, oldest first; also from a summary of older messages."""
    texts = [part for text in [conversation.summary, *conversation.asked] for part in sentences(text[:20_000])]
    return list(dict.fromkeys(clip(text) for text in texts if is_fact(text)))


def is_fact(sentence: str) -> bool:
    """Whether a user's sentence states something."""
    return bool(find(FACT, sentence[:200])) and not sentence.endswith("?")


def summarize_transcript(conversation: Conversation) -> str | None:
    """For an agent that writes summaries of conversations: what the user stated and asked, in lines `user: …`.

    The content of an earlier summary of this kind, before the first such line or in one, is part of the new one.
    """
    if not find(r"\bwrite\b.{0,20}\bsummary of (a|the) conversation\b", conversation.instructions):
        return None
    stated, asked, speaker = {}, {}, "summary"  # as dicts: each sentence once, in order
    for line in conversation.last.splitlines():
        if found := re.match(r"(user|assistant|system|tool): ?", line):
            speaker, line = found[1], line[found.end() :]
        if find(SUMMARY, f"{line}\n"):
            speaker = "summary"
        elif speaker == "user" or (speaker == "summary" and line.startswith("- ")):
            for part in sentences(line):
                (stated if is_fact(part) else asked)[clip(part, 160 if is_fact(part) else 80)] = True
    known, questions = list(stated), list(asked)
    # First and last: so a summary of summaries does not get longer.
    return summary([*known[:10], *known[10:][-10:]], [*questions[:1], *questions[1:][-5:]])


def summary(stated: list[str], asked: list[str]) -> str:
    """A summary of these."""
    lines = ["Summary of the conversation so far."]
    for heading, said in (("The user stated:", stated), ("The user asked:", asked)):
        lines += [heading, *(f"- {text}" for text in said)] if said else []
    return "\n".join(lines)


def stems(text: str) -> set[str]:
    """The significant words of a text, cut to their first five letters."""
    return {word[:5] for word in re.findall(r"[^\W\d_]{2,30}", text.lower()) if not find(SAYS_NOTHING, word)}
