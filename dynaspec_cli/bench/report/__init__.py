"""The report of a benchmark, drawn from ``summary.json`` alone: tables, pictures and words, as
Markdown, as a page and on the terminal."""
