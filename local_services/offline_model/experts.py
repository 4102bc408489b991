"""Physics and chemistry: short answers, each from an expert's point of view, and which expert to ask."""

from typing import NamedTuple

from local_services.offline_model.conversation import Conversation, clip, find


class Fact(NamedTuple):
    about: str
    answer: str
    simple: str  # the same in simpler words, with an example


class Field(NamedTuple):
    name: str
    expert: str
    words: str  # of its questions, in addition to the facts below
    facts: list[Fact]


PHYSICS = Field(
    "physics",
    "physicist",
    r"physic|quantum|gravit|\batoms?\b|forces?\b|veloc|accelerat|momentum|newton|einstein|relativ|particle|motion|lasers?\b|"
    r"magnet|electric|universe|planet|orbit|stars?\b|mass\b|wavelength|thermodynam|nuclear|energ|friction|sounds?\b|superconduct",
    [
        Fact(
            r"black holes?",
            "A black hole is a region where gravity is so strong that nothing which has crossed its edge, the event "
            "horizon, can come back, not even light. Many form when a massive star has burnt its fuel and its core "
            "collapses. Seen from outside, mass, spin and charge say everything about it.",
            "So much matter in so little space that even light cannot get away from it. For instance: Sagittarius A*, "
            "in the middle of our galaxy, has about four million times the mass of the Sun.",
        ),
        Fact(
            r"entrop|second law",
            "Entropy counts, on a logarithmic scale, in how many microscopic ways a system can look the same from "
            "outside. In a closed system it never decreases, simply because there are so many more disordered states "
            "than ordered ones. That is the second law of thermodynamics, and it gives time its direction.",
            "Things mix and spread by themselves because there are far more mixed-up states than tidy ones. For "
            "instance: Milk stirred into coffee spreads, and never gathers in one corner of the cup again.",
        ),
        Fact(
            r"temperatur|absolute zero|thermometer|heat\b|how hot|how cold",
            "To a physicist, temperature measures how energy is spread over the random motion of particles: in a gas, "
            "the mean kinetic energy of a molecule is 3/2 kT. It decides which way heat flows, always from hot to cold "
            "until both are equal. It starts at absolute zero, 0 K or −273.15 °C, where that motion is at its minimum.",
            "Temperature says how lively the particles jiggle. For instance: At room temperature the molecules of air "
            "race about at some 500 metres a second.",
        ),
        Fact(
            r"sky\b|sunset|rainbow|rayleigh|\blight\b|photon|colou?r",
            "The sky is blue because air scatters short wavelengths much more than long ones: Rayleigh scattering "
            "grows with the inverse fourth power of the wavelength. Blue sunlight therefore reaches us from all "
            "directions. At sunset the light crosses so much air that mostly orange and red are left.",
            "Air throws blue light about more than red, so blue comes from everywhere. For instance: On the Moon, "
            "which has no air, the sky is black even by day.",
        ),
    ],
)
CHEMISTRY = Field(
    "chemistry",
    "chemist",
    r"chemi|\bph\b|molecul|react(s|ion|ant)|elements?\b|periodic|compound|solvent|solution of|formula|oxid|plastic|"
    r"catalys|batter|alcohol|ethanol|organic|alloy|crystal|isotope|mole\b|titrat|\bsalts?\b|burn|combust|metals?\b|h2o",
    [
        Fact(
            r"\brust|corro",
            "Rust is hydrated iron oxide, which forms when iron meets oxygen and water together. Iron gives electrons "
            "to oxygen, as in a tiny battery on the metal's surface, and salt in the water makes that battery better.",
            "Iron, water and air slowly turn into a brown crumbly stuff. For instance: A nail rusts in a glass of tap "
            "water within days, and hardly at all under oil.",
        ),
        Fact(
            r"\bacid|\bbases?\b|alkali|neutrali|\bph\b",
            "In the picture of Brønsted and Lowry an acid gives away a proton and a base takes it. A strong acid "
            "such as hydrochloric acid gives up practically all of them in water, a weak one such as vinegar only a "
            "few. Acid and base together neutralise to a salt and water.",
            "Acids give protons, bases take them, and together they calm down. For instance: Vinegar and baking soda "
            "fizz: the acid turns the carbonate into carbon dioxide.",
        ),
        Fact(
            r"\bsoap|deterg|surfactant|foam|emulsi",
            "A soap molecule has a head that likes water and a tail that likes fat. In water the tails surround a "
            "droplet of grease while the heads point outwards, a micelle, and the grease can be rinsed away.",
            "One end holds on to grease, the other to water, and off they go together. For instance: A drop of dish "
            "soap in a greasy pan breaks the film of fat into droplets at once.",
        ),
        Fact(
            r"temperatur|how hot|how cold|\bheat\b|thermometer",
            "To a chemist, temperature decides how fast and how far a reaction goes. The warmer it is, the more "
            "molecules collide with at least the activation energy, which Arrhenius put into k = A·exp(−Ea/RT): "
            "near room temperature, ten degrees often double the rate. It also shifts equilibria, towards the side "
            "that takes up heat when it rises.",
            "Warmer molecules collide harder, so more of them react. For instance: Milk keeps for days in a "
            "refrigerator and turns sour overnight on the table.",
        ),
    ],
)
FIELDS = (PHYSICS, CHEMISTRY)
ABOUT_ANSWER = (
    r"\b(simpl(y|er|ify)|easier|plain words|eli5|example|how did you|how do you know|are you sure|go on|tell me more|"
    r"explain (that|it|this|more)|what does that mean)"
)


def answer(conversation: Conversation) -> str | None:
    """An expert's answer from its field, or any agent's from the field of the question; or the last one, simpler."""
    question, expert = conversation.request, expert_of(conversation)
    if fact := fact_about(question, expert or ask_whom(question)):
        return fact.answer
    if find(ABOUT_ANSWER, question):
        for said in reversed(conversation.answered):
            for fact in (*PHYSICS.facts, *CHEMISTRY.facts):
                if fact.answer in said or fact.simple in said:
                    return f"In simpler words: {fact.simple}"
    if expert and (field := ask_whom(question)) and (fact := fact_about(question, field)):
        return (
            f"That is rather a question for a {field.expert}. As a {expert.expert} I can say this much: {fact.simple}"
        )
    return None


def expert_of(conversation: Conversation) -> Field | None:
    """The field that the agent's instructions make it an expert in."""
    return next((field for field in FIELDS if conversation.is_about(field.name[:6])), None)


def fact_about(question: str, field: Field | None) -> Fact | None:
    """The first fact of the field whose subject is in the question."""
    return next((fact for fact in field.facts if find(fact.about, question)), None) if field else None


def ask_whom(question: str) -> Field | None:
    """The field with more subjects in the question; physics if both have the same number."""
    best = max(FIELDS, key=lambda field: len(subjects(question, field)))
    return best if subjects(question, best) else None


def subjects(question: str, field: Field) -> list[str]:
    """The words of a question that belong to a field."""
    patterns = [rf"\b(?:{field.words})\w*", *(rf"(?:{fact.about})\w*" for fact in field.facts)]
    found = [match[0].strip().lower() for pattern in patterns if (match := find(pattern, question))]
    return list(dict.fromkeys(found))


def route(conversation: Conversation) -> tuple[Field | None, str]:
    """The field of the last question, and why; None if it belongs to neither."""
    question = conversation.request
    if field := ask_whom(question):
        named = ", ".join(f"“{word}”" for word in subjects(question, field))
        return field, f"The question is about {named}, which belongs to {field.name}."
    if find(ABOUT_ANSWER, question):
        for earlier in reversed(conversation.asked[:-1]):
            if field := ask_whom(earlier):
                return field, f"It follows up on “{clip(earlier, 80)}”, a question of {field.name}."
    return None, f"“{clip(question, 80)}” names no subject of physics or chemistry."
