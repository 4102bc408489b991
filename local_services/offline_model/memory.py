"""Earlier messages: the questions, the user's facts, and a summary that keeps them."""

import re

from local_services.offline_model.conversation import SUMMARY, Conversation, capitalized, clip, find, sentences

ORDER = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4}
FACT = (
    r"^(?:(?:user|human)\W{1,3})?(?:(?:hi|hello|hey|please|and|also|oh|well|by the way|note|fyi)\b[\s,!:]{1,3}){0,3}"
    r"(?:remember\b|(?:please )?(?:keep in mind|note) that|my \w|i(?:'m|’m| am)\b|"
    r"i (?:live|work|have|like|love|prefer|hate|study|use|need|own|speak|come|don['’]t|can['’]t|want|was born)\b|"
    r"call me\b|we (?:are|have|live|need|want)\b)"
)
NAME = r"\b(?i:my name is|call me|i am called|name's)\s+([^\W\d_][\w'’-]{0,40}(?:\s[A-Z][\w'’-]{1,40}){0,2})"
SAYS_NOTHING = (
    r"^(what|is|my|the|an|am|are|do|did|does|you|me|to|of|in|on|for|have|has|remember|know|about|that|and|tell|who)$"
)


def answer(conversation: Conversation) -> str | None:
    """Answers a question about the conversation itself, or summarizes it."""
    request = conversation.request
    if find(r"\bsummar(y|i[sz]e)\b|\brecap\b|\bsum up\b", request) and find(
        r"conversation|chat|discuss|so far|what we|we (said|talked)|our\b|everything", request
    ):
        return summary(conversation)
    return earlier(conversation) or about_user(conversation)


def earlier(conversation: Conversation) -> str | None:
    """The user's first, second or last message, or the model's last answer."""
    before, request = conversation.asked[:-1], conversation.request
    if find(
        r"\bwhat (did|have|was|were)\b.{0,20}\byour? (just )?(last |previous |first )?(say|said|answer|reply|tell)\b",
        request,
    ):
        said = conversation.answered[:1] if "first" in request.lower() else conversation.answered[-1:]
        return f"I said: “{clip(said[0], 1000)}”" if said else "I have not said anything in this conversation yet."
    if not find(
        r"\bwhat\b.{0,30}\b(i|my)\b.{0,30}\b(ask|say|said|question|message|tell|told|want)", request
    ) and not find(r"\bwhat (was|is) my (\w+ ){0,2}(question|message|request)", request):
        return None
    if not find(r"first|second|third|fourth|fifth|last|previous|just|before|earlier|so far|all", request):
        return None
    if not before:
        return "This is your first message in this conversation; there is none before it."
    if find(r"\b(all|so far|everything)\b", request):
        return "Your messages so far:\n\n" + "\n".join(
            f"{number}. {clip(text)}" for number, text in enumerate(before, 1)
        )
    which = next((word for word in ORDER if find(rf"\b{word}\b", request)), "last")
    if which == "last":
        return f"Just before this, you said: “{clip(before[-1], 500)}”"
    if conversation.summary:
        return f"I only know the summary of the beginning of our conversation:\n\n{conversation.summary}"
    if ORDER[which] >= len(before):
        return f"There is no {which} message before this one; there are {len(before)}."
    return f"Your {which} message was: “{clip(before[ORDER[which]], 500)}”"


def about_user(conversation: Conversation) -> str | None:
    """The answer to a question about the user, from what the user has said."""
    request = conversation.request
    if find(r"\b(what('s|’s| is) my name|who am i|know my name|remember my name)\b", request):
        name = name_of_user(conversation)
        return f"Your name is {name}." if name else "You have not told me your name in this conversation."
    if find(r"\bwhat do you (know|remember) about me\b|\bwhat have i told you\b", request):
        known = facts(conversation)
        return (
            "You told me:\n\n" + "\n".join(f"- {fact}" for fact in known)
            if known
            else "You have not told me anything about yourself yet."
        )
    if find(
        r"^(and |so |but |please )?(what|where|which|when|how|who|do|am|can)\b.{0,80}\b(i|my|me)\b.{0,200}\?", request
    ):
        wanted = stems(request)
        known = [fact for fact in facts(conversation) if wanted & stems(fact)]
        return f"You told me: “{known[-1]}”" if known else None
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
    texts = [conversation.instructions, *conversation.answered]
    summaries = [conversation.summary, *(text for text in texts if find(r"\bsummary\b", text[:300]))]
    stated = [
        part
        for text in [*summaries, *conversation.asked]
        for part in sentences(text[:20_000])
        if find(FACT, part[:200])
    ]
    stated = [re.sub(r"^(?i:user|human)\W{1,3}", "", part) for part in stated if not part.endswith("?")]
    return list(dict.fromkeys(clip(part) for part in stated))


def summary(conversation: Conversation) -> str:
    """What was asked and answered, and every fact that the user stated."""
    known = facts(conversation)
    asked = [clip(text, 120) for text in conversation.asked[:-1] if clip(text) not in known]
    text = [f"Summary of the conversation so far ({len(conversation.asked) - 1} messages from the user)."]
    if known:
        text.append("The user stated:\n" + "\n".join(f"- {capitalized(fact)}" for fact in known))
    if asked:
        text.append("The user asked, in this order:\n" + "\n".join(f"- {question}" for question in asked[-12:]))
    if conversation.previous:
        text.append(f"The last answer began: {clip(conversation.previous, 160)}")
    return "\n\n".join(text) if known or asked else "There is nothing to summarize yet: this is the first message."


def summarize_transcript(conversation: Conversation) -> str | None:
    """For an agent that writes summaries of conversations: what the user stated and asked, in lines `user: …`.

    The content of an earlier summary of this kind, before the first such line or in one, is part of the new one.
    """
    if not find(r"\b(write|generate)\b.{0,40}\bsummary of (a|the) (entire )?conversation\b", conversation.instructions):
        return None
    stated, asked, speaker = [], [], "summary"
    for line in conversation.last.splitlines():
        if found := re.match(r"(?:\d+\. \[)?(user|assistant|system|tool)[:\]] ?", line):
            speaker, line = found[1], line[found.end() :]
        if find(SUMMARY, f"{line}\n"):
            speaker = "summary"
        elif speaker == "user" or (speaker == "summary" and line.startswith("- ")):
            for part in sentences(line):
                if find(FACT, part[:200]) and not part.endswith("?"):
                    stated.append(clip(part, 160))
                else:
                    asked.append(clip(part, 80))
    lines = ["Summary of the conversation so far."]
    # First and last: so a summary of summaries does not get longer.
    for heading, said, first, last in (("The user stated:", stated, 10, 10), ("The user asked:", asked, 1, 5)):
        if said := list(dict.fromkeys(said)):
            lines += [heading, *(f"- {text}" for text in [*said[:first], *said[first:][-last:]])]
    return "\n".join(lines)


def stems(text: str) -> set[str]:
    """The significant words of a text, cut to their first five letters."""
    return {word[:5] for word in re.findall(r"[^\W\d_]{2,30}", text.lower()) if not find(SAYS_NOTHING, word)}
