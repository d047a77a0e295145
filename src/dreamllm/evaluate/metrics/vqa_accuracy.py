"""VQA accuracy by both rules in use, with their quirks, because published numbers contain the quirks.

official  the evaluator of the VQA challenge: answers are normalised only when annotators disagree; upper case counts
evalai    the rule of TextVQA and of DreamLLM's own scorer: everything is always lower-cased and normalised

Both give the mean, over the annotators, of min(1, matches among the *other* annotators / 3). Others are taken by index,
so equal answers stay apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Rule = Literal["official", "evalai"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # "(?!<=" instead of "(?<!" is the evaluators' own slip; kept
PERIODS_REMOVED = 32  # both evaluators pass re.UNICODE (32) where re.sub expects a count
NUMBER_WORDS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"} | {
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
ARTICLES = ("a", "an", "the")

# Spellings without (all) their apostrophes get them back. This is the evaluators' table with its oddities: "somebody'd"
# loses its apostrophe, "its" and "im" do not occur. Entries with capitals are left out, for words come lower-cased.
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've y'all'd've you'd've"
)
CONTRACTIONS = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
CONTRACTIONS |= {word.replace("'", "", 1): word for word in _TWO_APOSTROPHES.split()}
CONTRACTIONS |= {"".join(word.rsplit("'", 1)): word for word in _TWO_APOSTROPHES.split()}
CONTRACTIONS |= {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "somebody'd": "somebodyd"}
CONTRACTIONS |= {"yall'll": "y'all'll", "y'allll": "y'all'll", "y'alld've": "y'all'd've"}


def normalise(text: str) -> str:
    """Strip punctuation, articles and number words as the challenge's evaluator does."""
    return _words(_strip_punctuation(text))


def normalise_evalai(text: str) -> str:
    """The EvalAI variant: lower case first, commas and question marks dropped, a space before "'s"."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise(_one_line(text))


def accuracy(prediction: str, answers: Sequence[str], rule: Rule) -> float:
    """Soft accuracy in [0, 1] of one prediction against its annotators' answers (ten in VQAv2).

    A question with a single answer has no other annotators to agree with, and the formula would give 0 to every
    prediction; here it is 1 if the prediction equals that answer after normalisation, else 0.
    Raises ValueError when there is no answer at all.
    """
    if not answers:
        raise ValueError("a question without answers cannot be scored")
    if rule == "evalai":
        prediction, answers = normalise_evalai(prediction), [normalise_evalai(answer) for answer in answers]
    else:
        prediction, answers = _one_line(prediction), [_one_line(answer) for answer in answers]
        if len(answers) == 1 or len(set(answers)) > 1:
            prediction, answers = normalise(prediction), [normalise(answer) for answer in answers]
    if len(answers) == 1:
        return float(prediction == answers[0])
    matches = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(matches) - own) / 3) for own in matches) / len(answers)


def clip(text: str) -> str:
    """DreamLLM's treatment of a generated short answer: no full stops or quotes, nothing after a comma, lower case."""
    return text.replace(".", "").replace('"', "").split(",")[0].strip().lower()


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_punctuation(text: str) -> str:
    has_number_comma = COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text  # in the text as given, not as stripped so far
        stripped = stripped.replace(mark, "" if beside_space or has_number_comma else " ")
    return PERIOD.sub("", stripped, count=PERIODS_REMOVED)


def _words(text: str) -> str:
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
