"""What is taken out of a dataset between transform and tokenise: lengths, languages, contamination, duplicates.

`stage` is the body of the rule and describes its manifest; `checks` looks at a row by itself, `contamination` beside
evaluation sets, `duplicates` beside the rows before it.
"""
