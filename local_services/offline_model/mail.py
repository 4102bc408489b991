"""Email: whether it is spam, by its content; and a polite reply if it is not."""

import re
from typing import NamedTuple

from local_services.offline_model.conversation import clip, find, sentences

NAME = r"[A-Z][\w'-]{1,30}(?: [A-Z][\w'-]{1,30})?"
SPAM_FROM = 3  # points


class Signal(NamedTuple):
    points: int
    what: str
    pattern: str


SIGNALS = [
    Signal(
        2,
        "promises a prize",
        r"\byou(?:'ve|’ve| have|r email)?\s+(?:just |been |has |have ){0,2}(?:won|win|selected|chosen)\b|"
        r"\blotter(?:y|ies)\b|\bjackpot|\bsweepstake|claim (?:your|the) |\bunclaimed|\binheritance|lucky winner",
    ),
    Signal(
        2,
        "names a fortune",
        r"[$€£]\s?\d{1,3}(?:[,.]\d{3}){2,}|\bmillions? (?:of )?(?:us )?(?:dollars|euros|pounds|usd)|"
        r"\bfree (?:money|cash|iphone|gift)|\bget rich|\bdouble your|make money (?:fast|from home)",
    ),
    Signal(2, "says “click here”", r"\bclick (?:here|below|now|this link|the link|on the link)"),
    Signal(
        1,
        "presses for time",
        r"\burgent|\bact (?:now|fast|immediately)|\blimited[ -]time|\bexpires? (?:today|soon|in)|"
        r"don['’]t miss out|last chance|within (?:24|48) hours|immediately",
    ),
    Signal(
        2,
        "offers crypto or sure profits",
        r"\bcrypto|\bbitcoin|\bguaranteed (?:returns?|profits?|income)|\brisk[ -]free|"
        r"\b(?:100|1000|500)\s?% (?:returns?|profit|free)",
    ),
    Signal(2, "asks for gift cards", r"\bgift ?cards?\b"),
    Signal(
        2,
        "is after an account or password",
        r"\b(?:verify|confirm|update|validate) your (?:\w+ ){0,2}(?:account|password|identity|"
        r"details|information|card)|account (?:has been|was|is|will be) (?:\w+ )?(?:suspended|locked|limited|closed)",
    ),
    Signal(
        2,
        "sells pills or gambling",
        r"\bviagra|\bcialis|\bcasino|\bweight[ -]loss|\bmiracle (?:cure|pill)|\bcheap meds",
    ),
    Signal(
        2,
        "links to a suspicious address",
        r"https?://\d{1,3}\.\d{1,3}\.\d{1,3}|https?://(?:bit\.ly|tinyurl|t\.co|goo\.gl)|"
        r"https?://[\w.-]{1,80}\.(?:xyz|top|tk|click|icu|ru|zip)\b|https?://[\w.-]{0,80}(?:login|verify|secure|prize|claim)",
    ),
    Signal(
        1,
        "asks for bank details or a transfer",
        r"\bbank (?:account|details)|\bwire transfer|\bwestern union|\bprocessing fee",
    ),
    Signal(
        1, "greets nobody in particular", r"\bdear (?:friend|customer|beneficiary|user|winner|sir/madam|account holder)"
    ),
    Signal(1, "congratulates", r"\bcongratulations?\b"),
    Signal(1, "shouts with exclamation marks", r"!{3}|(?:![^!]{1,80}){2}!"),
    Signal(
        3,
        "tries to give the reader's software orders",
        r"\b(?:ignore|disregard|forget|override) (?:\w+ ){0,3}(?:instructions?|prompts?|rules)|"
        r"\bis_?spam\b|this (?:e-?mail|message) is (?:not|no|definitely not) spam|\byou are now\b|\bsystem prompt",
    ),
]


def judge(email: str) -> tuple[bool, str]:
    """Whether an email is spam, and why. Only the beginning and the end of a very long one count."""
    email = email if len(email) < 100_000 else f"{email[:80_000]}\n{email[-20_000:]}"
    found = [(signal.points, signal.what) for signal in SIGNALS if find(signal.pattern, email)]
    words = re.findall(r"\b[^\W\d_]{4,30}\b", email)
    loud = [word for word in words if word.isupper()]
    if len(loud) >= 3 and len(loud) * 8 >= len(words):
        found.append((1, "is written in capitals"))
    signs = ", ".join(what for _, what in found)
    if sum(points for points, _ in found) >= SPAM_FROM:
        return True, f"Signs of spam in the content: it {signs}."
    if found:
        return False, f"Reads as ordinary mail. One sign alone does not make it spam (it {signs})."
    return False, f"Reads as ordinary mail, with no sign of spam: “{clip(gist(email), 80)}”"


def extract(prompt: str) -> str:
    """The email inside a prompt: between tags, fences or lines of dashes, after “Content:”, or all of it.

    The last closing mark counts, because the email may contain one itself.
    """
    if (tag := find(r"<([\w-]{0,20}(?:mail|content|message|body)[\w-]{0,20})(?:\s[^<>]{0,200})?>", prompt)) and (
        end := prompt.rfind(f"</{tag[1]}>")
    ) > tag.end():
        return prompt[tag.end() : end].strip()
    for fence in ("```", '"""', "-----", "=====", "---"):
        start, end = prompt.find(fence), prompt.rfind(fence)
        if 0 <= start < end:
            return prompt[start:end].split("\n", 1)[-1].strip()
    if label := find(r"^\W{0,4}(?:e-?mail )?(?:content|body|text|email|message)\W{0,4}:", prompt) or find(
        r"\n\W{0,4}(?:e-?mail )?(?:content|body|text|email|message)\W{0,4}:", prompt
    ):
        return prompt[label.end() :].strip()
    return prompt.strip()


# What to answer to an email, by its subject; the first match counts.
PROMISES = [
    (
        r"\b(meeting|call|appointment|schedule|calendar)\b",
        "I have taken note of it, and look forward to speaking with you.",
    ),
    (r"\b(invoice|payment|order|contract|report|document|attach)", "I will see to it, and confirm once that is done."),
    (
        r"\b(problem|issue|broken|error|complain|wrong|fail)",
        "I am sorry for the trouble. I am looking into it right away.",
    ),
    ("", "I appreciate that you let me know, and will come back to you shortly."),
]


def respond(email: str) -> str:
    """A polite reply with the email's subject, question and sender, if it has them."""
    name, subject, question = sender(email), header("Subject", email), asked(email)
    thanks = f"Thank you for your message about “{clip(subject, 80)}”." if subject else "Thank you for your message."
    if question:
        promise = f"You ask: “{clip(question)}” I am looking into it, and will answer in detail by tomorrow."
    else:
        promise = f"You write: “{clip(gist(email))}” " + next(text for about, text in PROMISES if find(about, email))
    return f"{f'Dear {name}' if name else 'Hello'},\n\n{thanks} {promise}\n\nKind regards"


def header(name: str, email: str) -> str:
    """The value of a header line of the email, or an empty string."""
    found = re.search(rf"^{name}:[ \t]*(.{{1,200}})$", email[:20_000], re.IGNORECASE | re.MULTILINE)
    return found[1].strip() if found else ""


def sender(email: str) -> str:
    """Who wrote the email: from its From line, its introduction or its signature; or an empty string."""
    if written_by := re.sub(r"<[^>]{0,200}>|\"", "", header("From", email)).strip():
        return written_by if "@" not in written_by else ""
    signed = re.search(
        rf"\b(?i:regards|thanks|thank you|cheers|best|sincerely|yours)[,!.]?\s{{1,4}}({NAME})\s*\Z", email[-400:]
    )
    named = re.search(rf"\b(?i:my name is|this is) ({NAME})", email[:2000])
    found = signed or named
    return found[1] if found else ""


def asked(email: str) -> str:
    """The first question of the email."""
    return next((sentence for sentence in sentences(content(email)) if sentence.endswith("?")), "")


def gist(email: str) -> str:
    """The first sentence of the email that is more than a greeting."""
    return next((part for part in sentences(content(email)) if len(part.split()) > 3), email)


def content(email: str) -> str:
    """The email without its header lines."""
    names = "from|to|cc|date|sent|subject|reply-to|message-id|email id"
    return re.sub(rf"^(?:(?:{names}):[^\n]{{0,300}}(?:\n|$)){{1,20}}", "", email[:20_000], flags=re.IGNORECASE).strip()
