"""The service as a tool finds it that knows its description alone."""
