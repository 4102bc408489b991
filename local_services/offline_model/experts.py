"""Physics and chemistry: short answers, each from an expert's point of view, and which expert to ask."""

from typing import NamedTuple

from local_services.offline_model.conversation import Conversation, clip, find, sentences


class Fact(NamedTuple):
    about: str
    answer: str
    simple: str
    example: str


class Field(NamedTuple):
    name: str
    expert: str
    words: str  # of its questions, in addition to the facts below
    facts: list[Fact]


PHYSICS = Field(
    "physics",
    "physicist",
    r"physic|forces?\b|veloc|accelerat|momentum|newton|einstein|particle|motion|mechanic|lasers?\b|universe|planet|orbit|"
    r"stars?\b|photon|mass\b|wavelength|thermodynam|nuclear|friction",
    [
        Fact(
            r"black holes?",
            "A black hole is a region where gravity is so strong that nothing which has crossed its edge, the event "
            "horizon, can come back, not even light. Many form when a massive star has burnt its fuel and its core "
            "collapses. Seen from outside, mass, spin and charge say everything about it.",
            "So much matter in so little space that even light cannot get away from it.",
            "Sagittarius A*, in the middle of our galaxy, has about four million times the mass of the Sun.",
        ),
        Fact(
            r"superconduct",
            "A superconductor carries electric current with no resistance at all once it is colder than its critical "
            "temperature. In the classic ones the electrons pair up and move as one quantum state, which single "
            "bumps of the lattice can no longer scatter. It also pushes magnetic fields out of itself, the Meissner "
            "effect.",
            "Made cold enough, some materials let electricity flow without losing any of it.",
            "The magnets of an MRI scanner are superconducting coils in liquid helium, at about 4 K.",
        ),
        Fact(
            r"quantum|schr[oö]dinger|heisenberg|uncertainty",
            "Quantum physics describes nature at the scale of atoms, where energy comes in portions and a particle is "
            "described by a wave of probabilities. Before a measurement several outcomes are possible at once; the "
            "measurement finds one of them. Position and momentum can never both be sharp: that is Heisenberg's "
            "uncertainty relation.",
            "Very small things behave like waves of chances until one looks.",
            "A laser works because atoms give off light only in portions of certain energies.",
        ),
        Fact(
            r"entrop|second law",
            "Entropy counts, on a logarithmic scale, in how many microscopic ways a system can look the same from "
            "outside. In a closed system it never decreases, simply because there are so many more disordered states "
            "than ordered ones. That is the second law of thermodynamics, and it gives time its direction.",
            "Things mix and spread by themselves because there are far more mixed-up states than tidy ones.",
            "Milk stirred into coffee spreads, and never gathers in one corner of the cup again.",
        ),
        Fact(
            r"temperatur|absolute zero|thermometer|heat\b|how hot|how cold",
            "To a physicist, temperature measures how energy is spread over the random motion of particles: in a gas, "
            "the mean kinetic energy of a molecule is 3/2 kT. It decides which way heat flows, always from hot to cold "
            "until both are equal. It starts at absolute zero, 0 K or −273.15 °C, where that motion is at its minimum.",
            "Temperature says how lively the particles jiggle.",
            "At room temperature the molecules of air race about at some 500 metres a second.",
        ),
        Fact(
            r"sky\b|sunset|rainbow|rayleigh",
            "The sky is blue because air scatters short wavelengths much more than long ones: Rayleigh scattering "
            "grows with the inverse fourth power of the wavelength. Blue sunlight therefore reaches us from all "
            "directions. At sunset the light crosses so much air that mostly orange and red are left.",
            "Air throws blue light about more than red, so blue comes from everywhere.",
            "On the Moon, which has no air, the sky is black even by day.",
        ),
        Fact(
            r"boil|freez|melt|evaporat",
            "A liquid boils when its vapour pressure equals the pressure around it. For water at sea level that "
            "happens at 100 °C; where the air is thinner it happens earlier. While it boils, the heat goes into "
            "separating molecules, about 2.26 MJ per kilogram, so the temperature stands still.",
            "Water boils when its bubbles can push the air away; less air pressure, less heat needed.",
            "On Mount Everest water boils at about 70 °C, which makes poor tea.",
        ),
        Fact(
            r"gravit|free fall|\bfalls?\b|\btides?\b",
            "Newton describes gravity as a force between masses that weakens with the square of their distance. "
            "Einstein explains it more deeply: mass and energy curve spacetime, and freely falling bodies follow "
            "its straightest paths. Near the ground everything accelerates at about 9.8 m/s², if air resistance is "
            "left out.",
            "Masses attract each other; the nearer and heavier, the more.",
            "On the Moon a hammer and a feather fall side by side: it was tried in 1971.",
        ),
        Fact(
            r"relativ|einstein|speed of light|spacetime|time dilation",
            "Relativity rests on two observations: the laws of physics are the same for everyone in uniform motion, "
            "and so is the speed of light, 299,792,458 m/s. From this follows that moving clocks run slow and that "
            "mass is a form of energy, E = mc². General relativity adds gravity as the curvature of spacetime.",
            "Light is equally fast for everyone, so time and distance have to give way.",
            "The clocks of GPS satellites gain about 38 microseconds a day, which the system corrects.",
        ),
        Fact(
            r"\blight\b|photon|colou?r|optic|laser",
            "Light is an electromagnetic wave, and comes in portions called photons. Its wavelength is what we see as "
            "colour, from about 400 nm for violet to 700 nm for red. In empty space it travels at 299,792,458 m/s; in "
            "glass or water more slowly, which bends it.",
            "Light is a ripple in electric and magnetic fields; its wavelength is its colour.",
            "A prism spreads sunlight because glass slows violet a little more than red.",
        ),
        Fact(
            r"magnet",
            "Magnetism comes from moving charges, and from the spin of electrons. In iron the spins of whole "
            "regions line up, and if enough regions agree the piece is a magnet. Changing magnetic fields produce "
            "electric ones, which is how a generator works.",
            "In a magnet, countless tiny electron magnets point the same way.",
            "A compass needle follows the magnetic field of the Earth's liquid iron core.",
        ),
        Fact(
            r"electric|voltage|\bcurrent\b|\bconduct",
            "An electric current is moving charge: in a wire, electrons that drift when a voltage, a difference in "
            "potential, drives them. How much flows depends on the resistance, I = U/R. The electrons crawl at less "
            "than a millimetre a second, but the field that drives them travels at nearly the speed of light.",
            "Voltage pushes, current flows, resistance holds back.",
            "A 1.5 V battery across 3 ohms drives half an ampere.",
        ),
        Fact(
            r"\benerg|kinetic|power plant",
            "Energy is the quantity that stays the same whatever happens in a closed system; it only changes form, "
            "from motion to heat, from light to charge. Its conservation follows from the laws of nature being the "
            "same today as yesterday. It is measured in joules, and power is energy per time.",
            "Energy is never made or lost, it only changes its form.",
            "A 1 kg book that falls from one metre brings about 10 J, which end as sound and heat.",
        ),
        Fact(
            r"\bsounds?\b|acoustic|echo",
            "Sound is a wave of pressure: molecules push their neighbours, which push theirs. In air it travels at "
            "about 340 m/s, in water more than four times as fast. Its frequency is the pitch, its amplitude the "
            "loudness.",
            "Sound is air that shakes, and passes the shaking on.",
            "Three seconds between lightning and thunder mean that the storm is about a kilometre away.",
        ),
        Fact(
            r"\batoms?\b|nucle(us|ar)|electron|fusion|fission",
            "An atom has a tiny, heavy nucleus of protons and neutrons, and electrons around it that occupy quantum "
            "states with definite energies. The nucleus holds almost all the mass in a hundred-thousandth of the "
            "diameter. Electric attraction binds the electrons, the strong force binds the nucleus.",
            "A heavy dot in the middle, and a cloud of electrons around it.",
            "If a nucleus were a pea in the middle of a stadium, the electrons would be among the upper seats.",
        ),
    ],
)

CHEMISTRY = Field(
    "chemistry",
    "chemist",
    r"chemi|chemic|react(s|ion|ant)|elements?\b|periodic|compound|solvent|solution of|formula|oxid|polymer|plastic|"
    r"alcohol|ethanol|organic|alloy|crystal|isotope|mole\b|titrat",
    [
        Fact(
            r"\brust|corro",
            "Rust is hydrated iron oxide, which forms when iron meets oxygen and water together. Iron gives "
            "electrons to oxygen, as in a tiny battery on the metal's surface, and salt in the water makes that "
            "battery better. Because rust is porous it does not protect the iron beneath.",
            "Iron, water and air slowly turn into a brown crumbly stuff.",
            "A nail rusts in a glass of tap water within days, and hardly at all under oil.",
        ),
        Fact(
            r"\bph\b|indicator|litmus",
            "The pH tells how acidic a solution is: it is the negative decimal logarithm of its hydrogen ion activity. "
            "Pure water at 25 °C has pH 7, acids less, bases more. One step is a factor of ten.",
            "Small pH means sour, 7 is neutral, large pH means soapy.",
            "Lemon juice has a pH of about 2, and is thus some 100,000 times more acidic than pure water.",
        ),
        Fact(
            r"\bacid|\bbases?\b|alkali|neutrali",
            "In the picture of Brønsted and Lowry an acid gives away a proton and a base takes it. A strong acid "
            "such as hydrochloric acid gives up practically all of them in water, a weak one such as vinegar only a "
            "few. Acid and base together neutralise to a salt and water.",
            "Acids give protons, bases take them, and together they calm down.",
            "Vinegar and baking soda fizz: the acid turns the carbonate into carbon dioxide.",
        ),
        Fact(
            r"batter|lithium|electroly|fuel cell",
            "A battery keeps an oxidation and a reduction apart and lets the electrons travel between them through "
            "your circuit, while ions close the loop inside. In a lithium-ion cell, lithium moves from graphite to "
            "a metal oxide as it discharges. Charging drives the same reaction backwards.",
            "Two substances trade electrons, but the electrons have to take the way through your lamp.",
            "A copper and a zinc strip in a lemon give nearly one volt.",
        ),
        Fact(
            r"\bsoap|deterg|surfactant|foam|emulsi",
            "A soap molecule has a head that likes water and a tail that likes fat. In water the tails surround a "
            "droplet of grease while the heads point outwards, a micelle, and the grease can be rinsed away. Soap is "
            "made by boiling fats with lye.",
            "One end holds on to grease, the other to water, and off they go together.",
            "A drop of dish soap in a greasy pan breaks the film of fat into droplets at once.",
        ),
        Fact(
            r"cataly|enzyme",
            "A catalyst makes a reaction faster by opening a path with a lower activation energy, and comes out of "
            "it unchanged. It does not move the equilibrium, it only gets there sooner. Enzymes are the catalysts "
            "of life.",
            "A catalyst shows the reaction an easier way and is not used up.",
            "Platinum in a car's exhaust turns carbon monoxide and nitrogen oxides into carbon dioxide and nitrogen.",
        ),
        Fact(
            r"\bcarbon|diamond|graphite|graphene|\bco2\b",
            "Carbon has four electrons for bonding, and bonds well with itself: in chains, rings, sheets and lattices. "
            "That is why there are millions of organic compounds. As an element it is soft graphite or hard diamond, "
            "depending only on how the atoms are joined.",
            "Carbon has four hands, and holds on to almost everything, itself included.",
            "A pencil and a diamond are the same element; only the arrangement differs.",
        ),
        Fact(
            r"entrop|second law|spontan",
            "A chemist meets entropy in the question whether a reaction runs by itself: it does if the Gibbs energy "
            "ΔG = ΔH − TΔS falls. Dissolving, melting and making gas raise the entropy, which is why heat favours "
            "them. A reaction may even cool its surroundings if its gain in entropy is large enough.",
            "Reactions like to end where matter and energy are more spread out.",
            "Ammonium nitrate dissolves by itself though it gets cold: that is a cold pack, driven by entropy.",
        ),
        Fact(
            r"temperatur|how hot|how cold|\bheat\b|thermometer",
            "To a chemist, temperature decides how fast and how far a reaction goes. The warmer it is, the more "
            "molecules collide with at least the activation energy, which Arrhenius put into k = A·exp(−Ea/RT): "
            "near room temperature, ten degrees often double the rate. It also shifts equilibria, towards the side "
            "that takes up heat when it rises.",
            "Warmer molecules collide harder, so more of them react.",
            "Milk keeps for days in a refrigerator and turns sour overnight on the table.",
        ),
        Fact(
            r"boil|freez|melt|\bwater\b|\bice\b|\bh2o\b",
            "Water, H₂O, boils at 100 °C at sea level, far later than so small a molecule should: hydrogen bonds "
            "hold the molecules together. Hydrogen sulfide, its heavier relative, which lacks strong ones, boils at "
            "−60 °C. Dissolved salt raises the boiling point a little, about half a degree per mole of particles in "
            "a kilogram.",
            "Water molecules cling to one another, so it takes much heat to part them.",
            "A teaspoon of salt in the pasta pot raises the boiling point by less than a tenth of a degree.",
        ),
        Fact(
            r"superconduct",
            "For a chemist, superconductors are a question of composition and structure. The ceramic YBa₂Cu₃O₇ works "
            "below about 92 K, above the boiling point of nitrogen, and its oxygen content decides whether it does. "
            "Making one means growing the right crystal with the right gaps.",
            "The right elements in the right pattern, cold enough, conduct without loss.",
            "Yttrium, barium and copper compounds are baked together and annealed in oxygen to make one.",
        ),
        Fact(
            r"\bsalts?\b|dissol|solub|\bions?\b",
            "A salt is a lattice of positive and negative ions. In water it dissolves if the water molecules, which "
            "turn their charged ends towards the ions, repay the energy of the lattice, with some help from "
            "entropy. Table salt is sodium chloride, NaCl.",
            "Water pulls the charged pieces of a salt apart and surrounds them.",
            "About 360 grams of table salt dissolve in a litre of water, hot or cold.",
        ),
        Fact(
            r"\bfire\b|burn|combust|flame|explo",
            "Burning is a fast oxidation that gives off heat and light. It needs fuel, oxygen and enough heat to "
            "start, and then feeds itself through radicals in the flame. With plenty of oxygen, hydrocarbons become "
            "carbon dioxide and water.",
            "Fuel and oxygen combine so fast that it glows.",
            "Methane burns as CH₄ + 2 O₂ → CO₂ + 2 H₂O.",
        ),
        Fact(
            r"molecul|\bbond|covalent|compound",
            "A molecule is a group of atoms that share electrons: the shared pair between two nuclei is the covalent "
            "bond. Shape follows from the pairs keeping their distance from one another. What a substance does depends "
            "on which atoms there are and how they are connected.",
            "Atoms hold together by sharing electrons.",
            "Ethanol and dimethyl ether are both C₂H₆O; one is a drink's alcohol, the other a gas.",
        ),
        Fact(
            r"\benerg",
            "A chemist looks for energy in bonds: breaking them costs energy, forming them releases it, and the "
            "balance is the heat of a reaction. If the new bonds are stronger, the reaction gives heat off. The "
            "activation energy is the hill in between, and the reason why wood does not burn by itself.",
            "Making strong bonds gives energy, breaking bonds takes it.",
            "Burning a gram of sugar releases about 17 kJ, in a flame as in the body.",
        ),
        Fact(
            r"\batoms?\b|periodic|\belements?\b|electron|\bmetals?\b|\bgold\b",
            "To a chemist an atom is above all its outer electrons, since they decide what it bonds with. The periodic "
            "table orders the elements by the number of protons, and its columns have the same number of outer "
            "electrons. So sodium and potassium behave alike, and so do chlorine and bromine.",
            "The number of protons names the element, the outer electrons make its character.",
            "All the elements of the first column but hydrogen react with water to form a base.",
        ),
        Fact(
            r"\blight\b|colou?r|pigment|glow",
            "A chemist sees light as what electrons take up or give off when they change their level in a molecule. "
            "A substance is coloured if it absorbs part of the visible light: long chains of alternating double "
            "bonds do. In a glow stick the reaction itself leaves a molecule excited, which then shines.",
            "Molecules swallow some colours, and we see the rest.",
            "Carrots are orange because carotene, with eleven double bonds in a row, absorbs blue.",
        ),
    ],
)

OTHER = {"physics": CHEMISTRY, "chemistry": PHYSICS}
ABOUT_ANSWER = (
    r"\b(simpl(y|er|ify)|easier|plain words|like i'?m five|eli5|example|how did you (come|get|know)|how do you know|"
    r"why do you (say|think)|are you sure|source|shorter|go on|tell me more|explain (that|it|this|more)|"
    r"what does that mean)"
)


def field_of(conversation: Conversation) -> Field | None:
    """The field that the agent's instructions make it an expert in."""
    return next((field for field in (PHYSICS, CHEMISTRY) if conversation.is_about(field.name[:6])), None)


def answer_as_expert(conversation: Conversation) -> str | None:
    """The agent's answer, if its instructions make it an expert; or more on its previous answer."""
    field, question = field_of(conversation), conversation.request
    if not field:
        return None
    if fact := fact_about(question, field):
        return fact.answer
    if find(ABOUT_ANSWER, question) and (told := follow_up(conversation)):
        return told
    if fact := fact_about(question, OTHER[field.name]):
        return (
            f"That is rather a question for a {OTHER[field.name].expert}. As a {field.expert} I can say this much: "
            f"{fact.simple} {fact.example}"
        )
    return None


def answer(conversation: Conversation) -> str | None:
    """Any agent's answer to a question of physics or chemistry; or more on its previous answer."""
    question = conversation.request
    if (field := ask_whom(question)) and (fact := fact_about(question, field)):
        return fact.answer
    return follow_up(conversation) if find(ABOUT_ANSWER, question) else None


def decline(conversation: Conversation) -> str | None:
    """The answer of an expert who does not know one."""
    field = field_of(conversation)
    return field and (
        f"I am the {field.expert} among the rules of the offline model, and “{clip(conversation.last, 80)}” is not "
        f"among the {len(field.facts)} subjects of {field.name} that I know: temperature, energy, entropy, atoms "
        "and the like. I would rather say so than guess; a real model can answer it."
    )


def follow_up(conversation: Conversation) -> str | None:
    """More on the previous answer: simpler, an example, or where it comes from."""
    for said in reversed(conversation.answered):
        for field in (PHYSICS, CHEMISTRY):
            for fact in field.facts:
                if fact.answer in said or fact.simple in said:
                    return more(fact, field, conversation.request)
    return None


def more(fact: Fact, field: Field, request: str) -> str:
    """More about an earlier fact, as the request asks."""
    start = sentences(fact.answer)[0]
    if find("how did you|how do you|why do you|are you sure|source", request):
        return (
            f"My answer began “{start}” I did not derive it: the offline model holds a small table of textbook "
            f"{field.name}, and your question named one of its subjects. A check that you can make yourself: "
            f"{fact.example}"
        )
    if find("example|tell me more|go on", request):
        return f"An example of what I said (“{clip(start, 90)}”): {fact.example}"
    return f"In simpler words: {fact.simple} For instance: {fact.example}"


def fact_about(question: str, field: Field) -> Fact | None:
    """The first fact of the field whose subject is in the question."""
    return next((fact for fact in field.facts if find(fact.about, question)), None)


def ask_whom(question: str) -> Field | None:
    """The field with more subjects in the question; physics if both have the same number."""
    fields = {field.name: subjects(question, field) for field in (PHYSICS, CHEMISTRY)}
    if not any(fields.values()):
        return None
    return CHEMISTRY if len(fields["chemistry"]) > len(fields["physics"]) else PHYSICS


def subjects(question: str, field: Field) -> list[str]:
    """The words of a question that belong to a field."""
    patterns = [rf"\b(?:{field.words})\w*", *(rf"(?:{fact.about})\w*" for fact in field.facts)]
    return [found[0].strip() for pattern in patterns if (found := find(pattern, question))]


def route(conversation: Conversation) -> tuple[Field | None, str]:
    """The field of the last question, and why; None if it belongs to neither."""
    question = conversation.request
    if field := ask_whom(question):
        named = ", ".join(f"“{word}”" for word in dict.fromkeys(word.lower() for word in subjects(question, field)))
        return field, f"The question is about {named}, which belongs to {field.name}."
    if find(ABOUT_ANSWER, question):
        for earlier in reversed(conversation.asked[:-1]):
            if field := ask_whom(earlier):
                return field, f"It follows up on “{clip(earlier, 80)}”, a question of {field.name}."
    return None, f"“{clip(question, 80)}” names no subject of physics or chemistry."
