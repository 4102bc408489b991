"""Email: whether it is spam, by its content; and a polite reply if it is not."""

import re

from local_services.offline_model.conversation import clip, find, sentences

SPAM_FROM = 3  # points
# What speaks for spam: points, a description, a pattern.
SIGNALS = [
    (
        2,
        "promises a prize",
        r"\byou['’]?(ve| have)? (just |been )?(won|selected)\b|\blotter|\bjackpot|claim your|inheritance",
    ),
    (2, "names a fortune", r"[$€£]\s?\d{1,3}([,.]\d{3}){2,}|\bmillions? (of )?(dollars|euros)|\bfree (money|cash)"),
    (2, "says “click here”", r"\bclick (here|below|now|(on )?(this|the) link)"),
    (
        1,
        "presses for time",
        r"\burgent|\bact (now|fast)|limited[ -]time|expires? (today|soon)|don['’]t miss out|last chance",
    ),
    (
        2,
        "offers crypto or sure profits",
        r"\bcrypto|\bbitcoin|\bdouble your|guaranteed (returns?|profits?)|risk[ -]free",
    ),
    (2, "asks for gift cards", r"\bgift ?cards?\b"),
    (
        2,
        "is after a password",
        r"\b(verify|confirm|update) your (\w+ )?(account|password|identity)|account .{0,20}suspended",
    ),
    (2, "sells pills or gambling", r"\bviagra|\bcasino|\bweight[ -]loss|\bmiracle (cure|pill)|\bcheap meds"),
    (
        2,
        "links to a suspicious address",
        r"https?://(\d{1,3}\.\d|bit\.ly|[\w.-]{1,80}(login|verify|prize|\.(xyz|top|zip)\b))",
    ),
    (1, "asks for a transfer", r"\bbank (account|details)|\bwire transfer|\bprocessing fee"),
    (1, "greets nobody in particular", r"\bdear (friend|customer|beneficiary|user|winner|sir/madam)"),
    (1, "congratulates", r"\bcongratulations?\b"),
    (1, "shouts with exclamation marks", r"!{3}|(?:[^!]{1,80}!){3}"),
    (
        3,
        "gives orders to the reader's software",
        r"\b(ignore|disregard|forget) (\w+ ){0,3}(instruct|prompt|rule)|\bis_?spam\b",
    ),
]
# What to answer to an email, by its subject; the first match counts.
PROMISES = [
    (r"\b(meeting|call|appointment|schedule)\b", "I have taken note of it, and look forward to speaking with you."),
    (r"\b(problem|broken|error|complain|wrong|fail)", "I am sorry for the trouble. I am looking into it right away."),
    ("", "I appreciate that you let me know, and will come back to you shortly."),
]
HEADERS = r"(?i)^(?:(?:from|to|cc|date|sent|subject|reply-to|message-id|email id):[^\n]{0,300}(?:\n|$)){1,20}"
NAME = r"[A-Z][\w'-]{1,30}(?: [A-Z][\w'-]{1,30})?"
SIGNED = rf"\b(?i:regards|thanks|thank you|cheers|best|sincerely|yours)[,!.]?\s{{1,4}}({NAME})\s*\Z"


def judge(email: str) -> tuple[bool, str]:
    """Whether an email is spam, and why. Only the beginning and the end of a very long one count."""
    email = email if len(email) < 100_000 else f"{email[:80_000]}\n{email[-20_000:]}"
    found = [(points, what) for points, what, pattern in SIGNALS if find(pattern, email)]
    signs = ", ".join(what for _, what in found)
    if sum(points for points, _ in found) >= SPAM_FROM:
        return True, f"Signs of spam in the content: it {signs}."
    if found:
        return False, f"Reads as ordinary mail. One sign alone does not make it spam (it {signs})."
    return False, f"Reads as ordinary mail, with no sign of spam: “{clip(gist(email), 80)}”"


def extract(prompt: str) -> str:
    """The email inside a prompt: between tags, after “Content:”, or all of it.

    The last closing tag counts, because the email may contain one itself.
    """
    tag = find(r"<([\w-]{0,20}(?:mail|content|message)[\w-]{0,20})>", prompt)
    if tag and (end := prompt.rfind(f"</{tag[1]}>")) > tag.end():
        return prompt[tag.end() : end].strip()
    label = find(r"(?:^|\n)(?:e-?mail )?(?:content|body|text|email|message):", prompt)
    return prompt[label.end() :].strip() if label else prompt.strip()


def respond(email: str) -> str:
    """A polite reply with the email's subject, question and sender, if it has them."""
    subject, text = header("Subject", email), re.sub(HEADERS, "", email[:20_000])
    signed = re.search(SIGNED, email[-400:]) or re.search(rf"\b(?i:my name is|this is) ({NAME})", email[:2000])
    name = re.sub(r"<[^>]{0,200}>|\"", "", header("From", email)).strip() or (signed[1] if signed else "")
    greeting = f"Dear {name}" if name and "@" not in name else "Hello"
    thanks = f"Thank you for your message about “{clip(subject, 80)}”." if subject else "Thank you for your message."
    if question := next((sentence for sentence in sentences(text) if sentence.endswith("?")), ""):
        promise = f"You ask: “{clip(question)}” I am looking into it, and will answer in detail by tomorrow."
    else:
        promise = f"You write: “{clip(gist(email))}” " + next(text for about, text in PROMISES if find(about, email))
    return f"{greeting},\n\n{thanks} {promise}\n\nKind regards"


def header(name: str, email: str) -> str:
    """The value of a header line of the email, or an empty string."""
    found = re.search(rf"(?im)^{name}:[ \t]*(.{{1,200}})$", email[:20_000])
    return found[1].strip() if found else ""


def gist(email: str) -> str:
    """The first sentence of the email that is more than a greeting."""
    text = re.sub(HEADERS, "", email[:20_000])
    return next((part for part in sentences(text) if len(part.split()) > 3), email)
