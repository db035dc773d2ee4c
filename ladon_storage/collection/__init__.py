"""The engine that collection flows run: sources yield pages of records, sinks make them durable.

It runs in a plain event loop and knows no Prefect, no client and no server.
"""
