"""What the agent can do: functions whose names, docstrings and parameters tell the model how to use them.

A turn is one operation: when a worker dies during it, another one repeats all of it, and calls the tools again. That
does no harm to a lookup, so those are plain functions. The one with an effect is a `durable_tool`, to have it once.

The data is made up; a real agent would ask a weather service, an events calendar and a restaurant here.
"""

from pathlib import Path
from uuid import uuid4

from hosting.program import setting

from durable_tools import durable_tool

WEATHER = {
    "tokyo": "Sunny spells and 22 °C by day, 15 °C at night. Light rain is likely on the second afternoon.",
    "paris": "Partly cloudy and 18 °C by day, 11 °C at night. Showers pass on the first evening.",
    "seattle": "Overcast and 14 °C by day, 9 °C at night. Drizzle on most mornings.",
    "lisbon": "Clear and 26 °C by day, 17 °C at night. A fresh wind from the Atlantic towards evening.",
}
ANY_WEATHER = "Fair and 20 °C by day, 12 °C at night. It stays dry."

EVENTS = {
    "tokyo": [
        "Street food night market in Asakusa, from 17:00, free",
        "Evening opening of the Hama-rikyu Gardens with tea, until 21:00, ¥300",
        "Sumo practice, open to visitors, in Ryogoku, 7:30, ¥1500",
    ],
    "paris": [
        "Jazz on the Seine quays near Pont Neuf, 19:00, free",
        "Late night at the Musée d'Orsay, until 21:45, €16",
        "Flea market at the Porte de Vanves, from 7:00, free",
    ],
    "seattle": [
        "Chef's tour of Pike Place Market, 8:00, $45",
        "Ferry concert to Bainbridge Island, 18:30, $20",
        "Glass blowing for beginners in Georgetown, 14:00, $60",
    ],
    "lisbon": [
        "Fado evening in Alfama, 21:00, €12",
        "Tile painting workshop near the Museu do Azulejo, 10:00, €30",
        "Sunset sail on the Tejo, 19:30, €35",
    ],
}
ANY_EVENTS = [
    "Farmers' market on the main square, from 8:00, free",
    "Guided walk through the old town, 11:00, €10",
    "Open-air concert in the city park, 20:00, free",
]


def get_weather_forecast(destination: str, date: str) -> str:
    """Get the weather forecast for a city at a date, which may be as vague as 'next week'."""
    return f"Weather in {destination}, {date}: {WEATHER.get(destination.strip().lower(), ANY_WEATHER)}"


def get_local_events(destination: str, date: str) -> str:
    """Get events for visitors of a city at a date, which may be as vague as 'next week'."""
    events = EVENTS.get(destination.strip().lower(), ANY_EVENTS)
    return "\n".join([f"Events in {destination}, {date}:", *(f"- {event}" for event in events)])


@durable_tool(approval=lambda people, **_: people > 8)
def reserve_table(restaurant: str, date: str, time: str, people: int, key: str) -> str:
    """Reserve a table in a restaurant. More than eight people need approval by a person."""
    base = Path(setting("RESERVATIONS_DIRECTORY") or Path(__file__).parent)
    path = base.resolve() / "reservations" / f"{key}.txt"
    reservation = f"A table for {people} at {restaurant}, {date}, {time}."
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written under another name first, so that nobody ever sees half of the file.
        unfinished = path.with_name(f".{uuid4().hex}.part")
        unfinished.write_text(f"{reservation}\n", encoding="utf-8")
        unfinished.replace(path)
    return f"Reserved. {reservation}"
