"""Stand-ins for the services that the samples use, over their real protocols: scheduler, model, Redis."""
