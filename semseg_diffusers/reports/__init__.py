"""Self-contained HTML pages: frame, tables, pictures and charts in one file without scripts."""
