"""Rule-based rewards: a completion is parsed once, and every term gives it a number."""

from .answers import Answers, Settings
from .needs import ask_for_images, unscorable
from .parse import Answer, answer_box, has_format, parse, parse_all
from .score import TERMS, Scores, check_terms, score

__all__ = [
    "TERMS",
    "Answer",
    "Answers",
    "Scores",
    "Settings",
    "answer_box",
    "ask_for_images",
    "check_terms",
    "has_format",
    "parse",
    "parse_all",
    "score",
    "unscorable",
]
