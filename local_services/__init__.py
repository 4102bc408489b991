"""Local replacements for the services that the samples use, with the real protocols: scheduler, model, Redis."""
