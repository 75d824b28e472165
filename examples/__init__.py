"""Small programs and backends to start from; each is run by a test."""
