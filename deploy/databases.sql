-- The databases beside that of the service, when the volume is made. Prefect's has an owner of its own,
-- who can read no other one.
CREATE DATABASE records;
REVOKE CONNECT ON DATABASE storage, records FROM PUBLIC;
\set password `cat /run/secrets/PREFECT_SERVER_DATABASE_PASSWORD`
CREATE ROLE prefect LOGIN PASSWORD :'password';
CREATE DATABASE prefect OWNER prefect;
