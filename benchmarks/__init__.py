"""Figures of the breaker, the client and the service, beside their peers and their floors."""
