-- What the first migration needs (docs/operations.md); may run any number of times.
\set ON_ERROR_STOP on
SELECT 'CREATE ROLE karvon LOGIN CREATEROLE BYPASSRLS'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'karvon') \gexec
SELECT $$CREATE DATABASE karvon OWNER karvon TEMPLATE template0 ENCODING 'UTF8'
         LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'$$
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'karvon') \gexec
\connect karvon
CREATE EXTENSION IF NOT EXISTS timescaledb;
