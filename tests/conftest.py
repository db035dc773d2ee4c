"""Fixtures of a whole session, made once however many files ask for them."""

from tests.mariadb import mariadb
from tests.postgres import postgres
from tests.redis_server import _redis_server, redis_server

__all__ = ["_redis_server", "mariadb", "postgres", "redis_server"]
