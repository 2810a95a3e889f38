"""One outside thing per file; its errors become ours here."""
