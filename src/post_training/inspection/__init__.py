"""Looking at data: rows on their way to tokens, and tables of what became of them. Tools that a person calls by hand."""
