"""`python3 run.py prove` kills each process of each sample at each step, and checks that nothing is lost or doubled."""
