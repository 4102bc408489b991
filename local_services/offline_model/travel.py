"""Travel plans: place, date and length from the conversation, facts from the tools' results."""

import re

from local_services.offline_model.conversation import Conversation, capitalized, clip, find, numbers, sentences

TRIP = (
    r"\b(trips?|travel\w*|visit\w*|vacation|holidays?|itinerar\w+|weekend|getaway|honeymoon|sightseeing|days? in|"
    r"week in|fly(ing)? to|go(ing)? to|plan)"
)
WHERE_TO = "Gladly. Where would you like to go, when, and for how many days?"
SIGHTS = {
    "kyoto": ["the lanes of Gion", "the torii gates of Fushimi Inari", "the bamboo of Arashiyama"],
    "lisbon": ["the lanes of Alfama", "the tower of Belém", "the miradouros above the Tejo"],
    "paris": ["the banks of the Seine", "the Musée d'Orsay", "the Marais"],
    "seattle": ["the waterfront", "Pike Place Market", "Kerry Park"],
    "tokyo": ["the crossings of Shibuya", "Sensō-ji in Asakusa", "the gardens of Meiji Shrine"],
}
ANYWHERE = ["the old town", "the main museum", "the best viewpoint"]
# A heading and advice for each day; the last one stands for all later days.
DAYS = [
    ("🛬 Arrival and first walk", "Drop the bags by 14:00 and walk the centre for two hours without a plan."),
    ("🏛️ The great sights", "Start at 09:00, before the queues, take two sights on foot, and lunch near the second."),
    ("🍜 Markets", "Spend the morning at a market, eat what the stalls sell, then cross to a quieter quarter."),
    ("🌳 Out into the green", "Take a local train for half an hour, walk three hours, and be back by 18:00."),
    ("🎁 Favourites again", "Return to the place that you liked best, buy what you meant to, and leave by 16:00."),
]
# How a plan is changed: a pattern for the wish, a heading, and advice. The first match counts.
CHANGES = [
    (
        r"rain|weather|\bwet\b|snow|storm|umbrella|\bcold\b|\bhot\b|sunny",
        "whatever the weather",
        "☔ If it rains, swap the outdoor half of the day for a museum, a covered market or a café, and keep the walk "
        "for the first dry hours. Take a light rain jacket rather than an umbrella: both hands stay free.",
    ),
    (
        r"cheap|budget|expensive|afford|save|money|cost",
        "for less",
        "💶 Sleep in a guest house one metro stop outside the centre, eat the big meal at noon, where the set menu is, "
        "and ride with a day ticket, or walk; the sights of a day lie close together.",
    ),
    (
        r"\b(plan|trip|days?|itinerary|instead|change|make it|add|shorter|longer|relax|food|eat|night|hotel|child|kid)",
        "adjusted",
        "Put your wish into the free afternoon of day 1 and the evening of the last day, where the plan has room for "
        "it. The offline model changes plans by rule (cheaper, rain); a real model weighs every wish.",
    ),
]
MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
WEEKDAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"
PERIODS = rf"{MONTHS}|{WEEKDAYS}|week|weekend|month|spring|summer|autumn|fall|winter"
DATE = (
    rf"\d{{4}}-\d\d-\d\d|\b(?:{MONTHS}) \d{{1,2}}\b|\b\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{MONTHS})\b|"
    rf"\b(?:next|this|early|late) (?:{PERIODS})\b|\btomorrow\b|\btoday\b|(?<=\bin )(?:{MONTHS})\b|"
    rf"(?<=\bon )(?:{WEEKDAYS})\b"
)
NOT_A_PLACE = rf"^({PERIODS}|christmas|easter|i|my|a|an|the|this|next|it|me|us|you|what|how|with|and|or)$"


def is_for(conversation: Conversation) -> bool:
    """Whether the user's last message asks for a trip to a place, or names the place of a requested trip."""
    request, planned = conversation.request, plans(conversation)
    if not place_in(request):
        return bool(find(r"\b(trip|itinerary|plan)\b", request) and not planned and destination(conversation))
    goes_on = (planned or conversation.previous == WHERE_TO) and not wants_table(conversation)
    return bool(find(TRIP, request) or goes_on)


def wants_table(conversation: Conversation) -> bool:
    """Whether the user wants a table in a restaurant."""
    return bool(find(r"\b(reserv\w+|tables?|dinner|restaurant)\b", conversation.request))


def answer(conversation: Conversation) -> str | None:
    """A plan, or a change of the earlier one."""
    if is_for(conversation):
        return plan(conversation)
    if notice := re.match(r"Not written by the user\.(.*)Tell the user\.", conversation.request, re.DOTALL):
        return f"News for you:{notice[1].rstrip()}"
    if plans(conversation):
        made = plans(conversation)[-1].splitlines()
        kept = "\n".join(line.replace("## ", "- ") for line in made if line.startswith(("**Weather", "## Day")))
        for pattern, title, advice in CHANGES:
            if find(pattern, conversation.request):
                return f"{made[0]}, {title}\n\nThis stays as it is:\n\n{kept}\n\n{advice}"
    return WHERE_TO if conversation.is_about("travel") and find(TRIP, conversation.request) else None


def plan(conversation: Conversation) -> str:
    """A plan day by day, with the tools' results about weather, events and anything else."""
    place, days = destination(conversation), days_of(conversation)
    sights = SIGHTS.get(place.lower(), ANYWHERE)
    weather = facts("weather|forecast", conversation)
    events = facts("event", conversation)
    arranged = facts(r"^(?!.*(weather|forecast|event))", conversation)
    wet = bool(find(r"rain|shower|snow|storm|drizzle|wet", " ".join(weather)))

    forecast = re.sub(r"^(?i:weather)[^:]{0,40}:\s*", "", " · ".join(weather[:6]))
    text = [f"# {days} {'day' if days == 1 else 'days'} in {place}"]
    text.append(f"**Weather:** {forecast or 'no forecast available, so pack for sun and rain.'}")
    text += [f"**Arranged:** {' · '.join(arranged[:6])}"] if arranged else []
    for number, (title, advice) in enumerate(DAYS[:days], start=1):
        is_rest = number == len(DAYS) < days
        text.append(f"## {f'Days {number} to {days}' if is_rest else f'Day {number}'}: {title}")
        sight = [f"Not to be missed: {name}." for name in sights[number - 1 : number]]
        event = [f"In the evening or as it suits: {name.rstrip('.')}." for name in events[number - 1 : number]]
        text.append(" ".join([advice, *sight, *event]))
    text.append("## 🎒 Good to know")
    also = f"Also on: {'; '.join(events[days:][:3])}. " if events[days:] else ""
    names = " and ".join(name for name, found in (("weather", weather), ("events", events)) if found)
    reported = f"{names} are what its tools reported" if names else "no tool told it anything"
    text.append(
        f"{'Take a rain jacket and waterproof shoes' if wet else 'Take comfortable shoes, water and sun cream'}, buy a "
        "day ticket for public transport, and keep the museum for the wettest or hottest hours. "
        f"{also}This plan was put together by the offline model; {reported}. Confirm times and opening hours first."
    )
    return "\n\n".join(text)


def plans(conversation: Conversation) -> list[str]:
    """The plans in this conversation."""
    return [said for said in conversation.answered if said.startswith("# ") and "## Day 1" in said]


def facts(tools: str, conversation: Conversation) -> list[str]:
    """What the tools whose name matches have reported, one fact per line."""
    texts = [re.sub(r'[\[\]{}"]', "", text[:4000]) for tool, text in conversation.results if find(tools, tool)]
    return [clip(line, 160) for text in texts for line in sentences(text) if not line.endswith(":")]


def destination(conversation: Conversation) -> str:
    """The place that was named last, or an empty string."""
    return next(filter(None, map(place_in, reversed(conversation.asked))), "")


def place_in(text: str) -> str:
    """The place in a text: capital letters after “to”, “in” …, or a place that the model knows."""
    for found in re.finditer(r"\b(?i:to|in|visit|about|for|explore|of)\s+(?=([^.?!,;:()\n]{1,60}))", text[:2000]):
        name: list[str] = []
        for word in found[1].split():
            if find(NOT_A_PLACE, word) or not word[0].isupper():
                break
            name.append(word)
        if name:
            return " ".join(name)
    return next((capitalized(place) for place in SIGHTS if find(rf"\b{place}\b", text[:2000])), "")


def days_of(conversation: Conversation) -> int:
    """How many days the user asked for, in the last message that says so; 3 if none does."""
    found = conversation.latest(r"\b(\d{1,2}|[a-z]{1,5})[\s-]{1,2}(?:full )?(day|night|week)s?\b|\bweekend\b")
    if not found:
        return 3
    count = int((numbers(found[1]) or [1])[0]) if found[1] else 2
    return min(max(count * (7 if found[2] and found[2].lower() == "week" else 1), 1), 30)


def date_of(conversation: Conversation) -> str:
    """When, in the words of the last message that says so; “next week” if none does."""
    found = conversation.latest(DATE)
    return found[0] if found else "next week"


def time_of(conversation: Conversation) -> str:
    """The time of day that the user named last; “19:00” if there is none."""
    found = conversation.latest(r"\b([01]?\d|2[0-3]):[0-5]\d\b|\b\d{1,2} ?[ap]m\b")
    return found[0] if found else "19:00"


def restaurant_of(conversation: Conversation) -> str:
    """The restaurant that the user named last, after “at”; or any one in the place of the trip."""
    found = conversation.latest(r"\bat (?-i:((?:[A-Z][\w'’-]{0,20} ?){1,4}))")
    return found[1].strip() if found else f"a good restaurant in {destination(conversation) or 'town'}"


def guests_of(conversation: Conversation) -> int:
    """For how many people; 2 if the user does not say."""
    found = conversation.latest(
        r"\b(?:for|party of) (\d{1,2}|[a-z]{3,5})\b(?! (?:day|night|week))|\b(\w{1,5}) (?:people|guests)\b"
    )
    counts = numbers((found[1] or found[2]) if found else "")
    return int(counts[0]) if counts else 2
