"""The doubles for tests of sources, sinks and collections."""
