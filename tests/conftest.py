"""Fixtures of a whole session, made once however many files ask for them."""

import os

from tests.mariadb import mariadb
from tests.postgres import postgres
from tests.redis_server import _redis_server, redis_server

# Every server of these tests is on loopback: no test goes by the proxies of whoever runs it.
for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]

__all__ = ["_redis_server", "mariadb", "postgres", "redis_server"]
