"""Rule-based rewards: a completion is parsed once, and every term gives it a number."""

from .answers import Answers, Settings
from .needs import ask_for_images, unscorable
from .parse import Answer, parse, parse_all
from .score import TERMS, Scores, check_terms, score

__all__ = [
    "TERMS",
    "Answer",
    "Answers",
    "Scores",
    "Settings",
    "ask_for_images",
    "check_terms",
    "parse",
    "parse_all",
    "score",
    "unscorable",
]
