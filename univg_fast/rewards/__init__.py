"""Rule-based rewards: a completion is parsed once, and every term gives it a number."""

from .answers import Answers, Settings
from .parse import Answer, answer_box, has_format, parse, parse_all
from .score import TERMS, Scores, check_terms, score

__all__ = [
    "TERMS",
    "Answer",
    "Answers",
    "Scores",
    "Settings",
    "answer_box",
    "check_terms",
    "has_format",
    "parse",
    "parse_all",
    "score",
]
