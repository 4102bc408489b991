"""The offline model: replaces a language model on a machine without one.

It answers chat requests by rules (rules.py, one file for each topic), with the protocol of Azure OpenAI and OpenAI
(server.py), without a network.
"""
