"""Travel plans: place, date and length from the conversation; the rest from the tools' results."""

import json
import re
from collections.abc import Iterator
from typing import Any

from local_services.offline_model.conversation import Conversation, capitalized, clip, find, numbers, sentences

ASKS_FOR_TRIP = (
    r"\b(trips?|travel\w*|visit\w*|vacation|holidays?|itinerar\w+|weekend|getaway|honeymoon|tour\b|sightseeing|"
    r"days? in|week in|fly(ing)? to|go(ing)? to|plan)"
)
WHERE_TO = "Gladly. Where would you like to go, when, and for how many days?"
MOST_DAYS = 5  # with a heading each

SIGHTS = {
    "amsterdam": ["the canals of the Jordaan", "the Rijksmuseum", "the Vondelpark"],
    "barcelona": ["the Gothic Quarter", "the Sagrada Família", "Park Güell"],
    "berlin": ["the Reichstag dome", "the Museum Island", "the East Side Gallery"],
    "kyoto": ["the lanes of Gion", "the torii gates of Fushimi Inari", "the bamboo of Arashiyama"],
    "lisbon": ["the lanes of Alfama", "the tower of Belém", "the miradouros above the Tejo"],
    "london": ["the South Bank", "the British Museum", "Borough Market"],
    "new york": ["the High Line", "the Metropolitan Museum", "Brooklyn Bridge"],
    "paris": ["the banks of the Seine", "the Musée d'Orsay", "the Marais"],
    "rome": ["the lanes of Trastevere", "the Forum", "the Pantheon"],
    "seattle": ["the waterfront", "Pike Place Market", "Kerry Park"],
    "tokyo": ["the crossings of Shibuya", "Sensō-ji in Asakusa", "the gardens of Meiji Shrine"],
    "vienna": ["the Ringstrasse", "the Kunsthistorisches Museum", "the Prater"],
}
ANYWHERE = ["the old town", "the main museum", "the best viewpoint"]

DAYS = [
    ("🛬 Arrival and first walk", "Drop the bags by 14:00 and walk the centre for two hours without a plan."),
    ("🏛️ The great sights", "Start at 09:00, before the queues, take two sights on foot, and lunch near the second."),
    (
        "🍜 Markets and neighbourhoods",
        "Spend the morning at a market, eat what the stalls sell, then cross to a quieter quarter.",
    ),
    ("🌳 Out into the green", "Take a local train for half an hour, walk three hours, and be back by 18:00."),
    (
        "🎁 Favourites again, and home",
        "Return to the place that you liked best, buy what you meant to, and leave by 16:00.",
    ),
]

MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
WEEKDAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
NOT_A_PLACE = (
    rf"{MONTHS}|{WEEKDAYS}|spring|summer|autumn|fall|winter|christmas|easter|i|my|a|an|the|some|this|next|somewhere|"
    r"there|it|me|us|you|please|what|how|with|and|or"
)


def is_for(conversation: Conversation) -> bool:
    """Whether the user's last message asks for a trip to a place, or names the place of a requested trip."""
    request = conversation.request
    if destination_in(request):
        return bool(find(ASKS_FOR_TRIP, request) or plans(conversation) or conversation.previous == WHERE_TO)
    return bool(find(r"\b(trip|itinerary|plan)\b", request) and not plans(conversation) and destination(conversation))


def answer(conversation: Conversation) -> str | None:
    """A plan, or a change of the earlier one."""
    if is_for(conversation):
        return plan(conversation)
    if plans(conversation):
        return change(conversation)
    if conversation.is_about("travel") and find(ASKS_FOR_TRIP, conversation.request):
        return WHERE_TO
    return None


def plan(conversation: Conversation) -> str:
    """A plan day by day, with the tools' results about weather and events."""
    place, days = destination(conversation), days_of(conversation)
    sights = SIGHTS.get(place.lower(), ANYWHERE)
    weather = [line for result in conversation.results if is_weather(result.tool) for line in lines(result.text)]
    events = [line for result in conversation.results if not is_weather(result.tool) for line in lines(result.text)]
    wet = bool(find(r"rain|shower|snow|storm|drizzle|wet", " ".join(weather)))

    text = [f"# {days} {'day' if days == 1 else 'days'} in {place}"]
    forecast = re.sub(r"^(?i:weather|forecast)[^:]{0,40}:\s*", "", " · ".join(weather[:6]))
    text.append(f"**Weather:** {forecast or 'no forecast available, so pack for sun and rain.'}")
    for number, (title, advice) in enumerate(DAYS[:days], start=1):
        rest = number == MOST_DAYS and days > MOST_DAYS
        text.append(f"## {f'Days {number} to {days}' if rest else f'Day {number}'}: {title}")
        parts = [advice]
        if number <= len(sights):
            parts.append(f"Not to be missed: {sights[number - 1]}.")
        if number <= len(events):
            parts.append(f"In the evening or as it suits: {events[number - 1].rstrip('.')}.")
        if number == 2:
            parts.append(
                "Keep the museum for the wettest hours." if wet else "Sit outside for dinner, the sky allows it."
            )
        text.append(" ".join(parts))
    text.append("## 🎒 Good to know")
    more = f" Also on: {'; '.join(events[days:][:3])}." if events[days:] else ""
    text.append(
        f"{'Take a rain jacket and waterproof shoes' if wet else 'Take comfortable shoes, water and sun cream'}, buy a "
        f"day ticket for public transport, and book tables a day ahead.{more} This plan was put together by the "
        f"offline model: {facts_from(weather, events)}; confirm times and opening hours before you go."
    )
    return "\n\n".join(text)


def facts_from(weather: list[str], events: list[str]) -> str:
    """Which of a plan's facts come from tools."""
    known = [name for name, found in [("weather", weather), ("events", events)] if found]
    return f"{' and '.join(known)} are what the tools reported" if known else "no tool gave it a forecast or events"


def change(conversation: Conversation) -> str | None:
    """The earlier plan, changed as the user asks; None if the message is not about it."""
    made, request = plans(conversation)[-1], conversation.request
    title = made.splitlines()[0].strip("# ")
    weather = next((line for line in made.splitlines() if line.startswith("**Weather:**")), "**Weather:** not known.")
    days = "\n".join(f"- {line.strip('# ')}" for line in made.splitlines() if line.startswith("## Day"))
    if find(r"cheap|budget|expensive|afford|save|money|cost", request):
        return (
            f"# {title}, for less\n\nThe days stay as they are:\n\n{days}\n\n## 💶 What changes\n\n"
            "- **Sleep** in a guest house one metro stop outside the centre; that saves most.\n"
            "- **Eat** the big meal at noon, where the set menu is, and picnic from the market at night.\n"
            "- **See** the free things first: viewpoints, parks, churches, and museums on their free evening.\n"
            "- **Ride** with a day ticket, or walk; the sights of a day lie close together."
        )
    if find(r"rain|weather|wet|snow|storm|umbrella|cold|hot\b|sunny", request):
        return (
            f"# {title}, whatever the weather\n\nWhat I know from before: {weather}\n\n## ☔ If it rains\n\nSwap the "
            "outdoor half of the day for a museum, a covered market or a café, and keep the walk for the first dry "
            f"hours; nothing in the plan depends on its order:\n\n{days}\n\nTake a light rain jacket rather than an "
            "umbrella: both hands stay free."
        )
    if find(r"child|kid|famil|toddler|baby|son\b|daughter", request):
        return (
            f"# {title}, with children\n\n{days}\n\n## 🧒 What changes\n\n"
            "- **One sight a day** instead of two, and always before lunch.\n"
            "- **A playground or a park** after it: let the children choose which.\n"
            "- **Short ways:** trams instead of long walks, and a hotel near a stop.\n"
            "- **Early dinner**, at a place with a kitchen one can watch."
        )
    if find(
        r"\b(plan|trip|day|days|itinerary|instead|change|make it|add|shorter|longer|relax|food|eat|night|hotel)\b",
        request,
    ):
        return (
            f"# {title}, adjusted\n\nYou asked: “{clip(request)}” These days stay as they are:\n\n{days}\n\n"
            "Put your wish into the free afternoon of day 1 and the evening of the last day, where the plan has room "
            "for it. The offline model changes plans by rule (cheaper, rain, children); a real model weighs every wish."
        )
    return None


def plans(conversation: Conversation) -> list[str]:
    """The plans in this conversation."""
    return [said for said in conversation.answered if said.startswith("# ") and "## Day 1" in said]


def is_weather(tool: str) -> bool:
    """Whether a tool returns the weather, by its name."""
    return bool(find("weather|forecast|climate", tool))


def destination(conversation: Conversation) -> str:
    """The place that was named last, or an empty string."""
    return next(filter(None, map(destination_in, reversed(conversation.asked))), "")


def destination_in(text: str) -> str:
    """The place in a text: capital letters after “to”, “in” …, or a known place."""
    for found in re.finditer(
        r"\b(?i:to|in|visit|visiting|around|about|for|explore|of)\s+(?:the\s+)?([^.?!,;:()\n]{1,60})", text[:2000]
    ):
        name: list[str] = []
        for word in found[1].split():
            if find(rf"^({NOT_A_PLACE})$", word) or not (word[0].isupper() or (name and word in ("de", "of", "del"))):
                break
            name.append(word)
        while name and name[-1].islower():
            name.pop()
        if name:
            return " ".join(name)
    known = [place for place in SIGHTS if find(rf"\b{place}\b", text[:2000])]
    if known:
        return known[0].title()
    typed = find(
        r"\b(?:trip|travel|fly|flying|go|going|journey|days?|week|weekend) (?:to|in) ([^\W\d_]{3,30})", text[:2000]
    )
    return capitalized(typed[1]) if typed and not find(rf"^({NOT_A_PLACE})$", typed[1]) else ""


def days_of(conversation: Conversation) -> int:
    """How many days the user asked for, in the last message that says so; 3 if none does."""
    return next(filter(None, map(days_in, reversed(conversation.asked))), 3)


def days_in(text: str) -> int | None:
    """The number of days in a text; None if there is none."""
    word = r"(\d{1,2}|one|two|three|four|five|six|seven|eight|nine|ten)"
    if found := find(rf"\b{word}[\s-]{{0,3}}(?:full )?(days?|nights?|weeks?)\b", text):
        count = int(numbers(found[1])[0]) * (7 if "week" in found[2].lower() else 1)
        return min(max(count, 1), 30)
    if find(r"\bweekend\b", text):
        return 2
    return 7 if find(r"\b(a|the|one) week\b", text) else None


def date_of(conversation: Conversation) -> str:
    """When the trip is, in the words of the last message that says so; “next week” if none does."""
    return next(filter(None, map(date_in, reversed(conversation.asked))), "next week")


def date_in(text: str) -> str:
    """The date or the time of year in a text, or an empty string."""
    found = find(
        rf"\d{{4}}-\d\d-\d\d|\b(?:{MONTHS}) \d{{1,2}}\b(?:, \d{{4}})?|"
        rf"\b\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{MONTHS})\b|"
        rf"\b(?:next|this|early|late) (?:{MONTHS}|{WEEKDAYS}|week|weekend|month|spring|summer|autumn|fall|winter)\b|"
        rf"\btomorrow\b|\btoday\b|(?<=\bin )(?:{MONTHS})\b|(?<=\bon )(?:{WEEKDAYS})\b",
        text,
    )
    return found[0] if found else ""


def lines(result: str) -> list[str]:
    """The facts of a tool's result, one per line, from JSON or from text."""
    try:
        return [clip(line, 160) for line in flatten(json.loads(result))]
    except ValueError:
        return [clip(line, 160) for line in sentences(result) if not line.endswith(":")]


def flatten(value: Any) -> Iterator[str]:
    """A JSON value as lines: a list line by line, an object as “key: value, …”."""
    if isinstance(value, list):
        for item in value:
            yield from flatten(item)
    elif isinstance(value, dict):
        short = [
            str(item) if key in ("name", "title", "event") else f"{key.replace('_', ' ')}: {item}"
            for key, item in value.items()
            if not isinstance(item, list | dict)
        ]
        if short:
            yield ", ".join(short)
        yield from flatten([item for item in value.values() if isinstance(item, list | dict)])
    elif isinstance(value, str):
        yield from sentences(value)
    elif value is not None:
        yield str(value)
