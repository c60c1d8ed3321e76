"""A model asked by a person: one question, many, or a page."""
