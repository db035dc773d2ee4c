"""Deployable flows: thin, and made of the tasks and the engine of `ladon_storage`."""
