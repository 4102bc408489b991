"""Writing: a sentence and its improvement, an article and its revision after a reviewer's feedback."""

import json
import re
from typing import NamedTuple

from local_services.offline_model.conversation import Conversation, capitalized, clip, find, numbers, sentences

# Sentences by topic, with the improved version of each.
SENTENCES = [
    (
        r"learn|study|educat|school|knowledge|read",
        "Learning something new every day makes life better.",
        "Every day you dare to learn something new, you open a door that nobody can ever close again.",
    ),
    (
        r"nature|sea\b|ocean|forest|mountain|garden|season",
        "Nature shows us that growing takes time.",
        "Nature never hurries, and yet every forest stands: give your own growth the season that it needs.",
    ),
    (
        "",
        "Give {topic} a little time every day, and it will give you something back.",
        "Give {topic} a little of your heart every day, and one day it will quietly light your way.",
    ),
]
ENDINGS = ["one brave step at a time", "today and every day that follows", "starting now"]
MENTION = (
    r"\b(?:mention|include|add|cover|talk about|emphasi[sz]e|focus (?:more )?on|more (?:about|on))\s{1,3}"
    r"(?:also |something |about |the |a |an ){0,3}([^.;!\n]{1,120})"
)


class Article(NamedTuple):
    title: str
    content: str


def answer(conversation: Conversation) -> str | None:
    """The text that a request to write or to improve asks for."""
    request = conversation.request
    if is_article(conversation):
        return "# {}\n\n{}".format(*article(conversation))
    if find(r"\b(improve|polish|refine|enhance|rephrase|rewrite|make (it|this|that) (better|nicer))\b", request):
        text = given_text(conversation)
        return improve(text, word_limit(request)) if text else "Gladly. Which text shall I improve?"
    if find(r"\b(write|compose|give me|create|come up with)\b.{0,60}\b(sentence|slogan|quote|line|motto)\b", request):
        topic = topic_of(request) or "what matters to you"
        first = next(first for about, first, _ in SENTENCES if find(about, topic))
        return shorten(first.replace("{topic}", topic), word_limit(request))
    return None


def improve(text: str, limit: int) -> str:
    """A better version of a text, in at most `limit` words; never the text itself."""
    for _, first, better in SENTENCES:
        if known := re.fullmatch(re.escape(first).replace(r"\{topic\}", "(?P<topic>.{1,200})"), text):
            return shorten(better.format(**known.groupdict()), limit)
    for ending in ENDINGS:
        longer = f"{text.rstrip('.!?… ')}, {ending}."
        if ending not in text and len(longer.split()) <= limit:
            return longer
    shorter = shorten(text, limit)
    return shorter if shorter != text else shorten(f"Remember: {text}", limit)


def shorten(text: str, limit: int) -> str:
    """The text, or as many of its first words as the limit allows, ended as a sentence."""
    words = text.split()
    return text if len(words) <= limit else f"{' '.join(words[:limit]).rstrip(',;:.!? ')}."


def word_limit(request: str) -> int:
    """The most words that a request allows; many if it sets no limit."""
    found = find(r"\b(under|fewer than|less than|at most|no more than|up to|in)\s+(\d{1,5}|[a-z]{3,5}) words", request)
    counts = numbers(found[2]) if found else []
    return (
        max(1, int(counts[0]) - (found[1].lower() in ("under", "fewer than", "less than"))) if found and counts else 999
    )


def given_text(conversation: Conversation) -> str:
    """The text to work on: after a colon, in quotation marks, or the previous answer."""
    head, _, rest = conversation.last.partition(":")
    if rest.strip() and len(head) < 300:
        return rest.strip().strip("\"“”'` \n")
    quoted = find(r"[\"“]([^\"“”]{3,2000})[\"”]", conversation.last)
    return quoted[1] if quoted else conversation.previous


def topic_of(text: str) -> str:
    """The topic of the requested text; empty if the request has none."""
    quoted = find(
        r"\b(?:about|on|topic):? (?:[\"“]([^\"”\n]{1,200})[\"”]|'([^\n]{1,200}?)'(?=[\s.,;!?]|$))", text[:5000]
    )
    found = (
        quoted or find(r"\babout\s+([^.?!\n:]{1,120})", text[:5000]) or find(r"\bon\s+([^.?!\n:,]{1,120})", text[:5000])
    )
    return next(filter(None, found.groups())).strip() if found else ""


def is_article(conversation: Conversation) -> bool:
    """Whether the user asks for an article, or for a new version of one."""
    verbs = r"\b(write|draft|rewrite|revise|compose|improve|create)\b"
    return bool(find(r"\b(article|blog post|essay)\b", conversation.request) and find(verbs, conversation.request))


def article(conversation: Conversation) -> Article:
    """The requested article: a first draft, or the latest one revised after the feedback."""
    request, topic = conversation.request, topic_of(conversation.request)
    wish = feedback(conversation.last)
    is_new = wish is None and topic and find(r"\b(write|draft|compose|create)\b", request)
    if not is_new and (earlier := latest_draft(conversation)):
        return revise(earlier, request if wish is None else wish)
    return first_draft(
        next(filter(None, [topic, *map(topic_of, reversed(conversation.asked)), "the things that matter"]))
    )


def first_draft(topic: str) -> Article:
    """A short article about any topic."""
    return Article(
        f"{capitalized(clip(topic, 80))}: Where to Begin, and What Lasts",
        f"{capitalized(topic)} comes up in more and more conversations, and there's a reason. Whoever looks closely "
        "finds something that is simple at heart and rich in its consequences. This article takes both in "
        f"turn.\n\nThe first question about {topic} is where to begin. A good start is small and concrete: take one "
        f"situation that you know well, look at what {topic} changes in it, and write down what surprises you. "
        "Don't try to see everything at once.\n\nThe second question is what lasts. Fashions pass, but what you've "
        f"understood yourself stays. Ask people who have lived with {topic}, compare what they say, and try it out. "
        f"It's the quickest way from an opinion to knowledge.\n\nIn the end, {topic} rewards patience. Begin small, "
        "stay curious, and let the results speak for themselves.",
    )


def feedback(text: str) -> str | None:
    """A reviewer's words at the end of a prompt; None if there are none."""
    # The last mark counts: a draft that is quoted before it may contain the word too.
    starts = [mark.end() for mark in re.finditer(r"(?i)\bfeedback\b[^\n:]{0,60}:", text)]
    return text[starts[-1] :].strip()[:2000] if starts else None


def latest_draft(conversation: Conversation) -> Article | None:
    """The draft in the prompt, or the last one in this conversation: as JSON, or as a text with a heading."""
    for said in [conversation.last, *reversed(conversation.answered)]:
        for start in [found.start() for found in re.finditer(r"\{", said[:200_000])][:20]:
            try:
                match json.JSONDecoder().raw_decode(said, start)[0]:
                    case {"title": str(title), "content": str(content)}:
                        return Article(title, content)
            except (ValueError, RecursionError):
                continue
        if heading := re.match(r"# (.{1,300})\n\n", said):
            return Article(heading[1], said[heading.end() :])
    return None


def revise(draft: Article, wish: str) -> Article:
    """The draft, revised after a reviewer's feedback: with each wish that is understood, and a remark on any other."""
    title, subject = draft.title, draft.title.partition(":")[0].strip()
    paragraphs = [part for part in re.split(r"\n\s{0,20}\n", draft.content) if part.strip()] or [draft.content]
    added = []
    if shorter := find(r"\b(short(er|en)?|brief(er)?|concise|too long|trim|cut|tighten|condense)\b", wish):
        paragraphs = condense(paragraphs)
    if renamed := find(r"\b(title|headline)\b(?:.{0,30}?[\"“'‘]([^\"”’'\n]{1,100}))?", wish):
        title = renamed[2] or f"What {subject} Teaches Us"
    if find(r"\bexamples?\b", wish):
        added.append(
            f"For example: a small team sets aside one hour a week for {subject}. After a month each member shows "
            "one thing that has changed in the daily work, and the team keeps the two that everyone wants."
        )
    if (mention := find(MENTION, wish)) and not find(r"\b(examples?|details?)\b", mention[1]):
        point = re.split(r",? and (?:make|keep|add|change|use|write)\b|, (?:please|but)\b", mention[1])[0].strip()
        added.append(
            f"One point deserves a place of its own: {point}. It shows {subject} from a side that is easily "
            "overlooked, and the picture isn't whole without it."
        )
    paragraphs[-1:-1] = added
    if not (shorter or renamed or added):
        says_nothing = not wish.strip() or find("^no (specific )?feedback", wish)
        note = "" if says_nothing else f", and follows the reviewer's note, “{clip(wish, 150)}”"
        paragraphs[-1] += f" This version says it better{note}."
    return Article(title, "\n\n".join(paragraphs))


def condense(paragraphs: list[str]) -> list[str]:
    """The first half of each paragraph; always shorter than before."""
    halves = [sentences(part) for part in paragraphs]
    shorter = [" ".join(part[: (len(part) + 1) // 2]) for part in halves]
    if len(" ".join(shorter)) < len(" ".join(paragraphs)) * 0.85:
        return shorter
    if len(paragraphs) > 1:
        return [shorter[0], shorter[-1]] if len(paragraphs) > 2 else shorter[:1]
    return [shorten(paragraphs[0], max(1, len(paragraphs[0].split()) * 2 // 3))]
