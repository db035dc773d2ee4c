"""The flows as a checkout deploys them; their bodies are in `ladon_storage.flows`."""
