"""Rule-based rewards: a completion is parsed once, and every term gives it a number."""

from .parse import answer_box, has_format
from .terms import TERMS, Answers, Scores, check_terms, score

__all__ = ["TERMS", "Answers", "Scores", "answer_box", "check_terms", "has_format", "score"]
