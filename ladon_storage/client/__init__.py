"""The client of the Storage Service, its connections, metrics and mock."""
