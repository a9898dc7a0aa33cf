"""Filters between transform and tokenise: lengths, languages, decontamination, deduplication.

`stage` is the body of the rule and describes its manifest; `checks` tests each row by itself, `contamination` compares with
evaluation sets, `duplicates` with earlier rows.
"""
