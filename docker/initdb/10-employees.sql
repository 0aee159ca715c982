-- A table and its history, owned by the application's role.
CREATE ROLE app NOLOGIN;

CREATE TABLE employees (
    id SERIAL PRIMARY KEY, name VARCHAR(100), department VARCHAR(100), salary NUMERIC);

CREATE TABLE employees_cdc (
    cdc_id SERIAL PRIMARY KEY,
    change_type VARCHAR(10),
    id INTEGER, name VARCHAR(100), department VARCHAR(100), salary NUMERIC,
    change_timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP);

ALTER TABLE employees OWNER TO app;
ALTER TABLE employees_cdc OWNER TO app;
