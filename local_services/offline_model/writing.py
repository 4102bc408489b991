"""Writing: a sentence and its improvement, an article and its revision after a reviewer's feedback."""

import json
import math
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
        r"fail|persever|courage|resilien|setback|hope",
        "Every setback is a chance to try again and do better.",
        "Every setback hands you a map: it shows where not to go, and dares you to set out again.",
    ),
    (
        r"team|together|collabor|friend|communit",
        "Together we can do more than any of us can do alone.",
        "Alone we carry what we can; together we carry one another, and arrive further than anyone dreamed.",
    ),
    (
        r"work|job|career|craft|code|program|engineer",
        "Good work is made of small steps, each done with care.",
        "Great work grows from small steps, each taken with such care that the last one looks effortless.",
    ),
    (
        r"nature|sea|ocean|forest|mountain|garden|season",
        "Nature shows us that growing takes time.",
        "Nature never hurries, and yet every forest stands: give your own growth the season that it needs.",
    ),
]
ANY_SENTENCE = (
    "Give {topic} a little time every day, and it will give you something back.",
    "Give {topic} a little of your heart every day, and one day it will quietly light your way.",
)
STRONGER = {
    "very ": "", "really ": "", "a lot of": "countless", "good": "remarkable", "nice": "delightful", "big": "vast",
    "helps": "empowers", "better": "brighter", "important": "essential", "shows": "reveals",
    "small": "humble", "great": "outstanding",
}  # fmt: skip
ENDINGS = ["one brave step at a time", "today and every day that follows", "and it all begins with you", "starting now"]

FORMAL = {
    "it's": "it is", "you've": "you have", "don't": "do not", "can't": "cannot", "doesn't": "does not",
    "isn't": "is not", "that's": "that is", "there's": "there is", "you'll": "you will", "let's": "let us",
    "won't": "will not", "a good start": "an appropriate beginning", "in the end": "in conclusion",
}  # fmt: skip


class Article(NamedTuple):
    title: str
    content: str


def answer(conversation: Conversation) -> str | None:
    """The text that a request to write or to improve asks for."""
    request = conversation.request
    if is_article(conversation):
        return "# {}\n\n{}".format(*article(conversation))
    if find(r"\b(improve|polish|refine|enhance|rephrase|reword|rewrite|make (it|this|that) (better|nicer))\b", request):
        text = given_text(conversation)
        return improve(text, word_limit(request)) if text else "Gladly. Which text shall I improve?"
    if find(
        r"\b(write|compose|give me|create|draft|come up with)\b.{0,60}\b(sentence|slogan|quote|line|motto)\b", request
    ):
        return sentence(topic_of(request) or "what matters to you", word_limit(request))
    return None


def sentence(topic: str, limit: int | None = None) -> str:
    """An inspirational sentence about a topic."""
    first = next((first for about, first, _ in SENTENCES if find(about, topic)), ANY_SENTENCE[0])
    return shorten(first.replace("{topic}", topic), limit)


def improve(text: str, limit: int | None = None) -> str:
    """A better version of a text, in at most `limit` words; never the text itself."""
    for _, first, better in [*SENTENCES, ("", *ANY_SENTENCE)]:
        if known := re.fullmatch(re.escape(first).replace(r"\{topic\}", "(.{1,200})"), text):
            return shorten(better.replace("{topic}", known[1] if known.groups() else ""), limit)
    better = replace_words(text, STRONGER)
    for ending in ENDINGS:
        longer = f"{better.rstrip('.!?… ')}, {ending}."
        if ending not in text and (limit is None or len(longer.split()) <= limit):
            return longer
    shorter = shorten(better, limit)
    return shorter if shorter != text else shorten(f"Remember: {text[:1].lower()}{text[1:]}", limit)


def shorten(text: str, limit: int | None) -> str:
    """The text, or as many of its first words as the limit allows, ended as a sentence."""
    words = text.split()
    if limit is None or len(words) <= limit:
        return text
    clause = max((end for end, word in enumerate(words[:limit], 1) if word[-1] in ".!?;:,"), default=0)
    kept = words[: clause if 2 * clause >= limit else limit]
    while len(kept) > 3 and kept[-1].lower().strip(",;:") in (
        "and",
        "or",
        "the",
        "a",
        "an",
        "of",
        "to",
        "that",
        "with",
        "in",
    ):
        kept.pop()
    return f"{' '.join(kept).rstrip(',;:.!? ')}."


def word_limit(request: str) -> int | None:
    """The most words that a request allows; None if it sets no limit."""
    found = find(
        r"\b(under|fewer than|less than|below|at most|no more than|within|up to|maximum(?: of)?|max|in)\s+"
        r"(\d{1,5}|[a-z]{3,5}) words",
        request,
    )
    if not found or not (count := numbers(found[2])):
        return None
    return max(1, int(count[0]) - (found[1].lower() in ("under", "fewer than", "less than", "below")))


def given_text(conversation: Conversation) -> str:
    """The text to work on: after a colon, in quotation marks, or the previous answer."""
    head, colon, rest = conversation.last.partition(":")
    if colon and len(head) < 300 and re.search(r"\w", rest[:1000]):
        return rest.strip().strip("\"“”'` \n")
    quoted = find(r"[\"“]([^\"“”]{3,2000})[\"”]", conversation.last)
    return quoted[1] if quoted else conversation.previous


def topic_of(text: str) -> str:
    """The topic of the requested text; empty if the request has none."""
    for pattern in (
        r"<topic>\s*(.{1,200}?)\s*</topic>",
        r"\b(?:about|on|topic|regarding)\b(?: the topic)?(?: of)?:?\s*[\"“‘«]([^\"“”’»\n]{1,200})[\"”’»]",
        r"\b(?:about|on|topic|regarding)\b(?: the topic)?(?: of)?:?\s*'([^\n]{1,200}?)'(?=[\s.,;!?]|$)",
        r"\btopic\W{0,4}:\W{0,4}([^\n]{1,200})",
        r"\babout\s+([^.?!\n:]{1,120})",
        r"\bon\s+([^.?!\n:,]{1,120})",
    ):
        if found := find(pattern, text[:5000]):
            return re.sub(
                r"\s+(in|with|under|using) (under |at most )?\w+ (words|sentences|paragraphs)$", "", found[1]
            ).strip(" *`.,")
    return ""


def is_article(conversation: Conversation) -> bool:
    """Whether the user asks for an article, or for a new version of one."""
    return bool(find(r"\b(article|blog post|essay|report on|story about)\b", conversation.request)) and bool(
        find(r"\b(write|draft|rewrite|revise|compose|improve|create|update|rework)\b", conversation.request)
    )


def article(conversation: Conversation) -> Article:
    """The requested article: a first draft, or the latest one revised after the feedback."""
    wish, topic = feedback(conversation.last), topic_of(conversation.request)
    new = topic and find(r"\b(write|draft|compose|create)\b", conversation.request)
    earlier = None if new and wish is None else latest_draft(conversation)
    if earlier:
        return revise(earlier, conversation.request if wish is None else wish)
    topics = [topic, *map(topic_of, reversed(conversation.asked)), "the things that matter"]
    draft = first_draft(next(filter(None, topics)))
    return revise(draft, wish) if wish else draft


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
    """A reviewer's words in a prompt; None if there are none."""
    found = find(r"<(\w{0,20}feedback)>\s*(.{0,2000}?)\s*</\1>", text.replace("\n", " ")) if "<" in text else None
    if found:
        return found[2]
    marks = r"(?i)\b(?:feedback|reviewer(?:'s)? (?:comments?|notes?)|review comments?)\b[^\n:]{0,60}:"
    # The last one counts: a draft that is quoted before it may contain the word too.
    starts = [mark.end() for mark in re.finditer(marks, text)]
    return text[starts[-1] :].strip().split("\n\n")[0][:2000] if starts else None


def latest_draft(conversation: Conversation) -> Article | None:
    """The draft in the prompt, or the last one in this conversation."""
    for said in [conversation.last, *reversed(conversation.answered)]:
        for start in [found.start() for found in re.finditer(r"\{", said[:200_000])][:20]:
            try:
                value, _ = json.JSONDecoder().raw_decode(said, start)
            except (ValueError, RecursionError):
                continue
            if (
                isinstance(value, dict)
                and isinstance(value.get("title"), str)
                and isinstance(value.get("content"), str)
            ):
                return Article(value["title"], value["content"])
        if labelled := re.search(
            r"(?im)^\W{0,4}title\W{0,4}:\W{0,4}(.{1,300})$\s{1,10}^\W{0,4}content\W{0,4}:", said[:200_000]
        ):
            rest = re.split(r"(?im)^.{0,40}(?:feedback|reviewer).{0,60}:", said[labelled.end() :])[0]
            return Article(labelled[1].strip(), rest.strip())
        if tagged := re.search(
            r"(?is)<title>(.{1,300}?)</title>\s{0,10}<content>(.{1,100000}?)</content>", said[:200_000]
        ):
            return Article(tagged[1].strip(), tagged[2].strip())
        if heading := re.match(r"# (.{1,300})\n\n", said):
            return Article(heading[1], said[heading.end() :])
    return None


def revise(draft: Article, wish: str) -> Article:
    """The draft, revised after a reviewer's feedback: with each wish that is understood, and a remark on any other."""
    title, paragraphs = (
        draft.title,
        [part for part in re.split(r"\n\s{0,20}\n", draft.content) if part.strip()] or [draft.content],
    )
    subject = draft.title.partition(":")[0].strip()
    done = False
    if find(r"\b(short(er|en)?|brief(er)?|concise|too long|trim|cut|tighten|less text|condense)\b", wish):
        paragraphs, done = condense(paragraphs), True
    if named := find(r"\btitle\b.{0,30}?[\"“'‘]([^\"”’\n]{1,100})[\"”'’]", wish):
        title, done = named[1], True
    elif find(r"\b(title|headline)\b", wish):
        title, done = f"What {subject} Teaches Us", True
    if find(r"\b(formal|professional|serious)\b", wish) and not find(r"less formal|too formal", wish):
        paragraphs, done = [replace_words(part, FORMAL) for part in paragraphs], True
        paragraphs[0] = opened(paragraphs[0], "The following considerations may serve as an introduction.")
    elif find(r"\b(casual|informal|friendl|less formal|too formal|fun\b|funn|humou?r|light)", wish):
        paragraphs[0], done = opened(paragraphs[0], "Get yourself a coffee: this won't hurt a bit, promised."), True
    if find(r"\b(simpl|easier|beginner|plain|jargon)", wish):
        paragraphs[0], done = opened(paragraphs[0], f"In one plain sentence: {subject} is easier than it looks."), True
    added = added_by(wish, subject)
    paragraphs[-1:-1] = added
    if find(r"\b(longer|more detail|expand|elaborate|deeper|more depth|too short)", wish):
        paragraphs[-1:-1], done = [DETAIL.format(subject=subject)], True
    if not (done or added):
        note = (
            f" This version follows the reviewer's note, “{clip(wish, 150)}”."
            if re.search(r"\w", wish) and not find("^no (specific )?feedback", wish)
            else ""
        )
        paragraphs[-1] += note or " Whoever reads this twice will find one thought more than the first time."
    return Article(title, "\n\n".join(paragraphs))


DETAIL = (
    "It pays to look at {subject} in more detail. Three questions help: who is it for, what does it cost, and how "
    "would one notice that it works? Answer each in writing, with a number where there is one, and compare after a "
    "month."
)


def added_by(wish: str, subject: str) -> list[str]:
    """The paragraphs that a wish asks to add: an example, or something to mention."""
    added = []
    if find(r"\bexamples?\b", wish):
        added.append(
            f"For example: a small team sets aside one hour a week for {subject}. After a month each member shows "
            "one thing that has changed in the daily work, and the team keeps the two that everyone wants."
        )
    mention = find(
        r"\b(?:mention|includ(?:e|ing)|add|cover|talk about|say something about|bring in|emphasi[sz]e|"
        r"focus (?:more )?on|more (?:about|on))\s{1,3}(?:also )?(?:something )?(?:about )?(?:the |a |an )?"
        r"([^.;!\n]{1,120})",
        wish,
    )
    if mention and not find(r"\b(examples?|details?)\b", mention[1]):
        point = re.split(r",? and (?:make|keep|add|change|use|write)\b|, (?:please|but)\b", mention[1])[0]
        point = point.strip(" \"“”'")
        added.append(
            f"One point deserves a place of its own: {point}. It shows {subject} from a side that is easily "
            "overlooked, and the picture isn't whole without it."
        )
    return added


def condense(paragraphs: list[str]) -> list[str]:
    """The first half of each paragraph; always shorter than before."""
    halves = [sentences(part) for part in paragraphs]
    shorter = [" ".join(part[: math.ceil(len(part) / 2)]) for part in halves]
    if len(" ".join(shorter)) < len(" ".join(paragraphs)) * 0.85:
        return shorter
    if len(paragraphs) > 1:
        return [shorter[0], shorter[-1]] if len(paragraphs) > 2 else shorter[:1]
    words = paragraphs[0].split()
    return [shorten(paragraphs[0], max(1, len(words) * 2 // 3))]


def opened(paragraph: str, opening: str) -> str:
    """The paragraph with an opening sentence added, unless it has it already."""
    return paragraph if opening in paragraph else f"{opening} {paragraph}"


def replace_words(text: str, replacements: dict[str, str]) -> str:
    """The text with words replaced; capital letters stay."""
    pattern = "|".join(rf"\b{re.escape(word)}" + ("" if word.endswith(" ") else r"\b") for word in replacements)

    def other(found: re.Match[str]) -> str:
        new = replacements[found[0].lower()]
        return capitalized(new) if found[0][0].isupper() else new

    return re.sub(pattern, other, text, flags=re.IGNORECASE)
