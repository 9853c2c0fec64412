"""SQLite files and the data directory. The only importer of sqlite3 and sqlite_utils."""
