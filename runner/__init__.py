"""The launcher behind run.py: its commands, and the processes that they start."""
